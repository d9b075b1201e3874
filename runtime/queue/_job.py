"""One picture on its way through the net: the batches left to do, and the future of the result."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy.typing as npt

from esrgan_deploy.runtime.tiling import Placed, Tile, TilePlan

__all__ = ["Callbacks", "Job", "Progress", "Task"]

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]


class Callbacks(threading.local):
    """How deep the current thread is in callbacks of the caller: entered around each of them."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Some tiles of one layer of a job, that go through the net together."""

    job: "Job"
    plan: TilePlan
    tiles: tuple[Tile, ...]
    source: Array
    target: Array

    @property
    def pixels(self) -> int:
        """Input pixels of the batch."""
        return self.plan.batch * (self.plan.strip or self.plan.tile[0]) * self.plan.tile[1]


class Job:
    """One picture. Not locked: its scheduler holds its own lock around every call but `report`.

    Args:
        layers: Source and target views, enlarged one after another: all colours at once, then alpha.
        plan: How each of them is cut.
        last: Makes the result once every batch is in place.
        placed: Called with rows of the output, ``[start, stop)``, that are in place over the whole width.
        progress: Called with the tiles or strips done and those in all, in order, by whatever thread did the last.
    """

    def __init__(
        self,
        layers: Sequence[tuple[Array, Array]],
        plan: TilePlan,
        *,
        last: Callable[[], Array],
        placed: Placed | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.future: Future[Array] = Future()
        self.plan = plan
        self.last = last
        self.error: BaseException | None = None
        self.begun = False
        self.claimed = False
        self.settled = False
        self._layers = tuple(layers)
        self._placed = placed
        self._progress = progress
        self._order = threading.Lock()
        self._running = 0
        self._done = 0
        self._reached: dict[Task, int] = {}
        self._returned: list[Task] = []
        self._tasks = self._cut()
        self._next: Task | None = next(self._tasks, None)

    @property
    def single(self) -> bool:
        """Whether one batch is all of it."""
        return len(self._layers) == 1 and self.plan.single

    @property
    def has_task(self) -> bool:
        """Whether a batch is left that nobody has taken."""
        return self.error is None and (bool(self._returned) or self._next is not None)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to take and nothing is being done."""
        return self._running == 0 and not self.has_task

    def take(self) -> Task:
        """Hand out a batch, to be released later."""
        self._running += 1
        if self._returned:
            return self._returned.pop()
        task = self._next
        assert task is not None
        self._next = next(self._tasks, None)
        return task

    def release(self) -> None:
        """Count one batch fewer as being done, however it ended."""
        self._running -= 1

    def report(self, task: Task) -> None:
        """Count a batch that is in place. What the caller's progress raises is raised here."""
        # Its own lock, so that the numbers rise from call to call and a slow callback holds up nobody else.
        if task.plan.strip:
            return
        if self._placed is not None:
            # The last tile of a row. Where another tile of the row is still on its way, its pages come back.
            for tile in task.tiles:
                if tile.column.keep_stop == task.plan.width:
                    self._placed(*task.plan.out_range(tile.row))
        self._count(task, len(task.tiles))

    def advance(self, task: Task, start: int, stop: int) -> None:
        """Count strips that are in place, to the output's row ``stop``; raise what the job has failed with meanwhile.

        Raises:
            BaseException: See `error`.
        """
        if self.error is not None:
            raise self.error
        if self._placed is not None:
            self._placed(start, stop)
        # Made again from the top, with more range, a picture is no further until it is further down.
        before = self._reached.get(task, 0)
        reached = max(before, task.plan.count * stop // task.plan.out_size[0])
        if reached > before:
            self._reached[task] = reached
            self._count(task, reached - before)

    def _count(self, task: Task, done: int) -> None:
        with self._order:
            if task.plan is not self.plan:
                return
            self._done += done
            if self._progress is not None:
                self._progress(self._done, self.plan.count * len(self._layers))

    def give_back(self, task: Task) -> None:
        """Take back a batch that could not be done."""
        if task.plan is self.plan:
            self._returned.append(task)

    def fail(self, error: BaseException) -> None:
        """Note why there will be no result; the first reason counts, and what is left is not begun."""
        if self.error is None:
            self.error = error

    def cut_again(self, plan: TilePlan) -> None:
        """Begin anew with other tiles. What is being done goes on, and writes the same pixels."""
        self.plan = plan
        self._done = 0
        self._returned.clear()
        self._tasks = self._cut()
        self._next = next(self._tasks, None)

    def _cut(self) -> Iterator[Task]:
        # One at a time: a picture beyond memory has more tiles than anyone wants to list.
        plan = self.plan
        for source, target in self._layers:
            for tiles in plan.batches():
                yield Task(self, plan, tiles, source, target)
