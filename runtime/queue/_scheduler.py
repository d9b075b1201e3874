"""One queue of pictures and the devices that work it off."""

import contextlib
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, InvalidStateError

from esrgan_deploy._errors import DeviceLostError, InferenceError, OutOfMemoryError
from esrgan_deploy.runtime.queue._guard import Guard
from esrgan_deploy.runtime.queue._job import Callbacks, Job, Task
from esrgan_deploy.runtime.queue._lane import Lane, close_quietly
from esrgan_deploy.runtime.sessions import Array, SessionInfo, Slot
from esrgan_deploy.runtime.tiling import Placed, Tile, TilePlan, run_batch

__all__ = ["Scheduler"]

# Pictures that may be on their way however few batches are.
LEAST_WAITING = 4


class Scheduler:
    """Works jobs off, batch by batch, on every device that has a slot free.

    A worker thread carries one batch through its slot from the cutting to the pasting, so that the host's work on
    one overlaps with the upload, the computing and the download of others. A job of one batch runs in the caller's
    own thread where a slot is free: handing it over would cost more than a small picture takes.

    Callbacks of the caller run in the midst of that work, or at its end, and must not wait for what goes on only when
    they return: there `submit` does not wait, `close` leaves the release to whoever works last, and what could only
    wait is refused.

    Args:
        lanes: The devices.
        guard: Looks at every batch before it is pasted.
        smaller: Takes a plan whose batch did not fit into memory and returns one that needs less, and a phrase that
            says so; raises InferenceError where there is none.
    """

    def __init__(
        self, lanes: Sequence[Lane], guard: Guard, smaller: Callable[[TilePlan], tuple[TilePlan, str]]
    ) -> None:
        self._lanes = tuple(lanes)
        self._guard = guard
        self._smaller = smaller
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._active: set[Job] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._closed = False
        self._apart = 0
        self._callbacks = Callbacks()
        self.batches = 0
        self.halvings = 0
        self.lost: list[str] = []

    @property
    def places(self) -> int:
        """Batches that can be in flight at once."""
        return sum(lane.most for lane in self._lanes if not lane.lost)

    def run(self, job: Job) -> Array:
        """Do a job and return its result, or raise what became of it."""
        with self._changed:
            self.refuse_closed()
            self._active.add(job)
            lane = self._free_lane() if job.single and not self._queue else None
            if lane is None:
                self._enqueue(job)
            else:
                self._begin(job)
                task, slot = job.take(), lane.enter()
        if lane is not None:
            self._perform(lane, slot, task)
            self._release_if_over()
        return self._wait(job)

    def at_once(self, plan: TilePlan, tiles: tuple[Tile, ...], source: Array, target: Array) -> bool:
        """Do one batch in the caller's thread with a slot that is free; false where it is for the queue to do.

        A job, a future and a hand-over take longer than a small picture. What fails for want of memory, or with the
        device, is left to the queue as well, which meets it again and answers it.

        Raises:
            InferenceError: The batch failed for another reason.
        """
        with self._changed:
            lane = None if self._closing or self._queue else self._free_lane()
            slot = None if lane is None else lane.enter_again()
            if lane is None or slot is None:
                return False
            self._apart += 1
        kept: Slot | None = None
        try:
            self._through(slot, lane.info, plan, tiles, source, target)
            kept = slot
        except (OutOfMemoryError, DeviceLostError):
            return False
        finally:
            if kept is None:
                close_quietly(slot)
            with self._changed:
                lane.leave(kept)
                self.batches += 1
                self._apart -= 1
                self._changed.notify_all()
            self._release_if_over()
        return True

    def submit(self, job: Job) -> None:
        """Queue a job; wait while more pictures are on their way than twice the batches that fit in flight."""
        with self._changed:
            self.refuse_closed()
            while not self._inside() and len(self._active) >= max(2 * self.places, LEAST_WAITING):
                self._changed.wait()
                self.refuse_closed()
            self._active.add(job)
            self._enqueue(job)

    def refuse_closed(self) -> None:
        """Raise where nothing can be done any more.

        Raises:
            InferenceError: It is closed, or every device is lost.
        """
        if self._closing:
            raise InferenceError("this Upscaler is closed; open another one")
        if all(lane.lost for lane in self._lanes):
            raise InferenceError(f"every device of this Upscaler is lost ({self.lost[-1]}); open another one")

    def refuse_inside(self, what: str) -> None:
        """Raise where a callback asks for what would wait for itself.

        Raises:
            InferenceError: It does.
        """
        if self._inside():
            raise InferenceError(
                f"{what} in a callback of the same Upscaler would wait for what called it; use submit() there"
            )

    def close(self, *, cancel: bool) -> None:
        """Finish what was submitted, or cancel what has not begun; then release the devices. Can be repeated."""
        with self._changed:
            self._closing = True
            for job in self._active if cancel else ():
                if not job.begun:
                    job.fail(CancelledError())
                elif job.has_task or job.plan.strip:
                    job.fail(InferenceError("the Upscaler was closed before this picture was done"))
            self._changed.notify_all()
            ended = [job for job in self._active if self._claim(job)]
        for job in ended:
            self._conclude(job)
        if self._inside():
            return
        with self._changed:
            # Those that run in a caller's thread are waited for as well.
            while self._active or self._apart:
                self._changed.wait()
        self._release_if_over()
        for thread in self._threads:
            thread.join()

    def _release_if_over(self) -> None:
        with self._changed:
            if self._closed or not self._closing or self._active or self._apart or self._callbacks.depth > 0:
                return
            self._closed = True
            slots = [slot for lane in self._lanes for slot in lane.take_idle()]
        close_quietly(*slots)
        for lane in self._lanes:
            lane.close()
        self._guard.close()

    def _inside(self) -> bool:
        return self._callbacks.depth > 0 or threading.current_thread() in self._threads

    def _through(
        self,
        slot: Slot,
        info: SessionInfo,
        plan: TilePlan,
        tiles: tuple[Tile, ...],
        source: Array,
        target: Array,
        placed: Placed = lambda start, stop: None,
    ) -> None:
        if plan.strip:
            return self._guard.run_strips(slot, info, plan, source, target, placed=placed)
        judge = lambda made, given: self._guard.check(made, given, info, plan, tiles, source)  # noqa: E731
        return run_batch(slot, info, plan, tiles, source, target, judge=judge)

    def _free_lane(self) -> Lane | None:
        open_lanes = [lane for lane in self._lanes if lane.open]
        return max(open_lanes, key=lambda lane: lane.free, default=None)

    def _enqueue(self, job: Job, *, again: bool = False) -> None:
        if not again:
            self._queue.append(job)
        elif job not in self._queue:
            self._queue.appendleft(job)
        if not self._threads:
            for number, lane in enumerate(self._lanes):
                for place in range(lane.most):
                    name = f"esrgan-{number}-{place}"
                    thread = threading.Thread(target=self._serve, args=(lane,), name=name, daemon=True)
                    self._threads.append(thread)
                    thread.start()
        self._changed.notify_all()

    def _begin(self, job: Job) -> bool:
        if not job.begun:
            job.begun = True
            if not job.future.set_running_or_notify_cancel():
                job.fail(CancelledError())
        return job.error is None

    def _serve(self, lane: Lane) -> None:
        self._work(lane)
        self._release_if_over()

    def _work(self, lane: Lane) -> None:
        while True:
            with self._changed:
                while not (lane.open and self._trim()):
                    if lane.lost or (self._closing and not self._active):
                        return
                    self._changed.wait()
                job = self._queue[0]
                begun = self._begin(job)
                if begun:
                    task, slot = job.take(), lane.enter()
                over = not begun and self._claim(job)
            if begun:
                self._perform(lane, slot, task)
            elif over:
                self._conclude(job)

    def _trim(self) -> bool:
        # Drop jobs that have nothing left to take; true if one is left at the front.
        while self._queue and not self._queue[0].has_task:
            self._queue.popleft()
        return bool(self._queue)

    def _perform(self, lane: Lane, slot: Slot | None, task: Task) -> None:
        """Do a batch in a place of a lane, note what became of it, and give the place back."""
        job, fresh = task.job, slot is None

        def advance(start: int, stop: int) -> None:
            with self._callbacks:
                job.advance(task, start, stop)

        try:
            if slot is None:
                slot = lane.session.slot()
            self._through(slot, lane.info, task.plan, task.tiles, task.source, task.target, placed=advance)
            with self._callbacks:
                job.report(task)
        except BaseException as error:
            # What it was doing when it failed is not known, so its slot is not used again.
            failed, slot = slot, None
            if failed is not None:
                close_quietly(failed)
            # A slot that could not be made, or a new one for what fits elsewhere: there are too many.
            crowded = fresh and (failed is None or task.pixels <= lane.proved)
            kept = self._answer(lane, task, error, crowded=crowded)
        else:
            kept = True
        unused: list[Slot] = []
        with self._changed:
            if slot is not None:
                lane.proved = max(lane.proved, task.pixels)
            self.batches += 1
            job.release()
            if kept:
                lane.leave(slot)
            if lane.lost:
                unused = lane.take_idle()
            # When the last device is lost, what waits in the queue ends here as well.
            ended = [one for one in self._active if self._claim(one)]
            self._changed.notify_all()
        close_quietly(*unused)
        for one in ended:
            self._conclude(one)

    def _answer(self, lane: Lane, task: Task, error: BaseException, *, crowded: bool) -> bool:
        """Decide what a failure means for the job and the lane; whether the lane keeps the place."""
        job = task.job
        said = None
        with self._changed:
            if isinstance(error, OutOfMemoryError) and crowded and lane.narrow():
                said = f"{lane.info.name}: memory is short; going on with {lane.most} batches in flight. "
                said += f"Use streams={lane.most} to start there"
                self._return(task)
                kept = False
            else:
                kept = True
                if isinstance(error, DeviceLostError):
                    said = self._lose(lane, error)
                if isinstance(error, DeviceLostError) and not all(one.lost for one in self._lanes):
                    self._return(task)
                elif isinstance(error, OutOfMemoryError):
                    said = self._cut_smaller(task, error)
                else:
                    job.fail(error)
        if said is not None:
            try:
                warnings.warn(said, RuntimeWarning, stacklevel=2)
            except RuntimeWarning as warning:
                # The caller has warnings raised as errors.
                with self._changed:
                    job.fail(warning)
        return kept

    def _return(self, task: Task) -> None:
        task.job.give_back(task)
        # In front: it is the oldest.
        self._enqueue(task.job, again=True)

    def _lose(self, lane: Lane, error: DeviceLostError) -> str | None:
        if lane.lost:
            return None
        lane.lost = True
        self.lost.append(f"device {lane.info.device} ({lane.info.provider}): {error}")
        left = [one for one in self._lanes if not one.lost]
        if left:
            return f"device {lane.info.device} is lost ({lane.info.provider}: {error}); {len(left)} go on"
        for job in self._queue:
            job.fail(error)
        return None

    def _cut_smaller(self, task: Task, error: OutOfMemoryError) -> str | None:
        job = task.job
        if task.plan is not job.plan:
            # Another batch of the same plan did not fit either, and was answered.
            self._return(task)
            return None
        try:
            plan, said = self._smaller(task.plan)
        except InferenceError:
            job.fail(error)
            return None
        self.halvings += 1
        job.cut_again(plan)
        self._return(task)
        return f"{said} ({error})"

    def _claim(self, job: Job) -> bool:
        # Under the lock: whoever gets a true here, and nobody else, concludes the job.
        if job.claimed or not job.ended:
            return False
        job.claimed = True
        return True

    def _conclude(self, job: Job) -> None:
        result: Array | None = None
        if job.error is None:
            try:
                result = job.last()
            except BaseException as error:
                job.fail(error)
        with self._changed:
            # Before the future is told, so that what waits on it may submit the next one.
            job.settled = True
            self._active.discard(job)
            if job in self._queue:
                self._queue.remove(job)
            self._changed.notify_all()
        with self._callbacks, contextlib.suppress(InvalidStateError):
            # A future that was cancelled before it began was not told so: `concurrent.futures.wait` waits for that.
            if not job.begun:
                if isinstance(job.error, CancelledError):
                    job.future.cancel()
                job.begun = True
                job.future.set_running_or_notify_cancel()
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                assert result is not None
                job.future.set_result(result)

    def _wait(self, job: Job) -> Array:
        try:
            return job.future.result()
        except BaseException as error:
            if not job.future.done():
                # Ctrl-C. What is being done still writes to the target: wait for it, begin nothing more.
                with self._changed:
                    job.fail(error)
                    over = self._claim(job)
                if over:
                    self._conclude(job)
                with self._changed:
                    while not job.settled:
                        self._changed.wait()
            raise
