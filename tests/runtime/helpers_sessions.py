"""Sessions for the tests of the queue: real pictures come out, and the device behaves as it is told to.

A device is three locks (upload, compute, download), each held for a while, as a GPU's two copy engines and its
multiprocessors work side by side. It shows what the queue does with such a device, not what CUDA does.
"""

import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from esrgan_deploy import InferenceError
from esrgan_deploy.runtime import BatchOutput, SessionInfo

__all__ = ["NearestSession"]


class NearestSession:
    """Every pixel becomes a square of itself.

    Args:
        scale: Side of the square.
        stage: Seconds that each of upload, compute and download takes.
        slots: Batches worth having in flight.
        device: Ordinal that it claims.
        fail: Called with the number of the batch (from 0) before it is computed; may raise.
        most: Largest height and width.
        limit: Most pixels of a batch that fit into its memory.
    """

    def __init__(
        self,
        *,
        scale: int = 2,
        stage: float = 0.0,
        slots: int = 3,
        device: int = 0,
        fail: Callable[[int], None] | None = None,
        most: int = 2**20,
        limit: int | None = None,
    ) -> None:
        self.stage, self.fail, self.limit = stage, fail, limit
        self.engines = [threading.Lock() for _ in range(3)]
        self.lock = threading.Lock()
        self.open_slots = self.made_slots = self.batches = self.flying = self.most_flying = 0
        self.closed = 0
        self.shapes: list[tuple[int, int, int]] = []
        self._info = SessionInfo(
            name=f"nearest{device}", form="uint8", dtype=np.dtype(np.uint8), in_channels=3, out_channels=3,
            scale=Fraction(scale), max_shape=(8, most, most), provider="a test", slots=slots, device=device,
        )  # fmt: skip

    @property
    def info(self) -> SessionInfo:
        return self._info

    def slot(self) -> "NearestSlot":
        with self.lock:
            self.open_slots += 1
            self.made_slots += 1
        return NearestSlot(self)

    def run(self, batch: np.ndarray) -> np.ndarray:
        slot = self.slot()
        try:
            n, h, w, _ = batch.shape
            slot.prepare((n, h, w))[...] = batch
            slot.start()
            return slot.finish().batch
        finally:
            slot.close()

    def run_on_device(self, array: Any, *, stream: Any = None, out: Any = None) -> Any:
        return (self.info.device, array, stream, out)

    def close(self) -> None:
        self.closed += 1

    def pass_through(self, engine: int) -> None:
        with self.engines[engine]:
            time.sleep(self.stage)


class NearestSlot:
    """A batch in flight; the three stages run on a thread of their own, as on a stream."""

    def __init__(self, session: NearestSession) -> None:
        self.session = session
        self.batch: np.ndarray | None = None
        self.closed = False
        self.thread: threading.Thread | None = None
        self.made: BatchOutput | None = None
        self.error: BaseException | None = None

    def prepare(self, shape: tuple[int, int, int]) -> np.ndarray:
        assert not self.closed, "a closed slot was used"
        n, h, w = shape
        limit = self.session.limit
        if limit is not None and n * h * w > limit:
            from esrgan_deploy import OutOfMemoryError

            raise OutOfMemoryError(f"{n * h * w} pixels do not fit")
        with self.session.lock:
            self.session.shapes.append(shape)
        if self.batch is None or self.batch.shape != (n, h, w, 3):
            self.batch = np.full((n, h, w, 3), 77, np.uint8)
        return self.batch

    def start(self) -> None:
        session = self.session
        with session.lock:
            number = session.batches
            session.batches += 1
            session.flying += 1
            session.most_flying = max(session.most_flying, session.flying)
        self.error = None
        if session.stage == 0:
            self._compute(number)
        else:
            self.thread = threading.Thread(target=self._stages, args=(number,))
            self.thread.start()

    def finish(self) -> BatchOutput:
        if self.thread is not None:
            self.thread.join()
        with self.session.lock:
            self.session.flying -= 1
        if self.error is not None:
            raise self.error
        assert self.made is not None
        return self.made

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with self.session.lock:
                self.session.open_slots -= 1

    def _stages(self, number: int) -> None:
        self.session.pass_through(0)
        with self.session.engines[1]:
            time.sleep(self.session.stage)
        self._compute(number)
        self.session.pass_through(2)

    def _compute(self, number: int) -> None:
        try:
            if self.session.fail is not None:
                self.session.fail(number)
            assert self.batch is not None
            scale = int(self.session.info.scale)
            self.made = BatchOutput(self.batch.repeat(scale, 1).repeat(scale, 2))
        except Exception as error:
            self.error = error


def plain_failure(number: int) -> None:
    raise InferenceError(f"batch {number} failed")
