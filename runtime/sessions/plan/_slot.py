"""One batch of a plan in flight: its stream, its memory, and its work as one CUDA graph. Not run on a GPU so far."""

import contextlib
from collections.abc import Mapping
from typing import Any

from esrgan_deploy._errors import DeviceLostError, InferenceError, OutOfMemoryError
from esrgan_deploy.runtime.device import (
    CaptureBrokenError,
    CudaGraph,
    Device,
    DeviceBuffer,
    PinnedBuffer,
    Stream,
)
from esrgan_deploy.runtime.sessions._checks import check_size
from esrgan_deploy.runtime.sessions._protocol import Array, BatchOutput, SessionInfo
from esrgan_deploy.runtime.sessions.plan._engine import PlanEngine
from esrgan_deploy.runtime.sessions.plan._parts import PlanParts
from esrgan_deploy.runtime.sessions.plan._work import InParts, Whole, Work

__all__ = ["PlanSlot"]

SHAPES = 4
# Captures of one shape that fail one after the other before none is tried any more: once or twice it was another
# thread, or another's memory.
CAPTURES = 3
# Pixels of a picture that goes whole although it could go through the parts, in a tenth of the memory: nets of 64
# features hold some 2 GB for so many, in half precision.
MOST_WHOLE = 512**2


class PlanSlot:
    """Stream, buffers and contexts of one batch in flight; see `Slot` for the protocol.

    The first batch of a shape is enqueued piece by piece, which also warms up; the second is captured, with upload
    and download, or, where another thread breaks that, a later one; from then on a batch is one launch. A graph
    holds addresses and the state of its context: each of the last four shapes keeps a context of its own, all of
    them on the slot's one scratch memory, as only one runs at a time; and where a buffer has to grow,
    every graph is dropped. A picture that the plan does not take, or for which memory is short, goes through its
    parts.

    Args:
        engine: The plan.
        device: Where it runs.
        info: Of the session.
        parts: Of the plan.

    Raises:
        InferenceError: The session is closed, or the driver refuses.
    """

    def __init__(
        self, engine: PlanEngine, device: Device, info: SessionInfo, parts: PlanParts | None = None
    ) -> None:
        self._engine, self._device, self._info, self._parts = engine, device, info, parts
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._now: _Shape | None = None
        self._host: dict[str, PinnedBuffer] = {}
        self._memory: dict[str, DeviceBuffer] = {}
        self._common: dict[PlanEngine, Any] = {}
        self._busy = self._closed = False
        with device.bound():
            self._stream = Stream(device)

    def prepare(self, shape: tuple[int, int, int]) -> Array:
        """Return the batch to fill, in pinned memory; see `Slot.prepare`."""
        self._refuse_closed()
        wanted = self._info.batch_shape(*shape)
        if self._busy:
            # What was started and never asked for still reads and writes these buffers.
            self._wait()
        if self._now is None or self._now.shape != wanted:
            in_parts = self._parts is not None and self._parts.takes(shape)
            if not in_parts:
                check_size(self._info, shape)
            with self._device.bound():
                self._arrange(wanted, whole=not in_parts or self._goes_whole(shape), in_parts=in_parts)
        assert self._now is not None
        assert self._now.work.given is not None
        return self._now.work.given

    def start(self) -> None:
        """Enqueue upload, inference and download; see `Slot.start`.

        Raises:
            InferenceError: It is closed, was not prepared or not finished, or the device refuses it.
        """
        self._refuse_closed()
        if self._now is None or self._busy:
            state = "again before it was finished" if self._busy else "before it was prepared"
            raise InferenceError(f"a slot of {self._info.name} was started {state}")
        with self._device.bound():
            try:
                self._launch(self._now)
            except InferenceError as error:
                self._recover(error)
                raise
        self._busy = True

    def finish(self) -> BatchOutput:
        """Wait for the batch and return it; see `Slot.finish`.

        Raises:
            InferenceError: It was not started, or the batch failed on the device.
        """
        shape = self._now
        if shape is None or not self._busy:
            raise InferenceError(f"a slot of {self._info.name} was asked for what it was not given")
        self._wait()
        if not shape.kept:
            shape.kept = True
            with self._device.bound():
                shape.work.keep_kernels()
        return shape.work.made()

    def close(self) -> None:
        """Release everything, on a lost device too; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(InferenceError), self._device.bound():
            self._stream.synchronize()
        self._release()
        self._stream.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise InferenceError(f"a slot of {self._info.name} is closed; ask the session for another one")

    def _wait(self) -> None:
        self._busy = False
        with self._device.bound():
            self._stream.synchronize()

    def _launch(self, shape: "_Shape") -> None:
        if shape.graph is None and shape.warm and self._engine.captured:
            self._capture(shape)
        if shape.graph is not None:
            shape.graph.launch(self._stream)
            return
        self._enqueue(shape)
        shape.warm = True

    def _capture(self, shape: "_Shape") -> None:
        capturable = [getattr(context, "is_stream_capturable", None) for context in shape.work.contexts]
        try:
            if not all(asked is None or asked(self._stream.handle) for asked in capturable):
                raise InferenceError("the plan allocates while it runs")
            shape.graph = self._stream.capture(lambda: self._enqueue(shape))
        except DeviceLostError:
            raise
        except InferenceError as error:
            shape.shaken = True
            shape.broken += 1
            passing = isinstance(error, (CaptureBrokenError, OutOfMemoryError))
            if not passing or shape.broken >= CAPTURES:
                self._engine.give_up_capture(error)

    def _enqueue(self, shape: "_Shape") -> None:
        again, shape.shaken = shape.shaken, False
        shape.work.enqueue(self._stream, again=again)

    def _recover(self, error: InferenceError) -> None:
        # What was enqueued before the failure may still use the buffers, and what TensorRT refused for a broken
        # context is known as such by the driver only.
        try:
            self._stream.synchronize()
        except (DeviceLostError, OutOfMemoryError) as worse:
            raise worse from error
        except InferenceError:
            pass
        if isinstance(error, OutOfMemoryError):
            # Less is going to be asked for; it may need the very room that is held here.
            self._release()

    def _goes_whole(self, shape: tuple[int, int, int]) -> bool:
        least, most = self._info.min_shape, self._info.max_shape
        taken = all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True))
        # A plan of one size was built for that size.
        return taken and (least == most or shape[1] * shape[2] <= MOST_WHOLE)

    def _arrange(self, wanted: tuple[int, ...], *, whole: bool, in_parts: bool) -> None:
        if whole:
            try:
                self._arrange_as(wanted, in_parts=False)
                return
            except OutOfMemoryError:
                if not in_parts:
                    raise
        self._arrange_as(wanted, in_parts=True)

    def _arrange_as(self, wanted: tuple[int, ...], *, in_parts: bool) -> None:
        self._now = None
        shape = self._shapes.pop(wanted, None)
        while len(self._shapes) >= SHAPES:
            self._shapes.pop(next(iter(self._shapes))).close()
        try:
            if shape is None:
                shape = _Shape(wanted, self._work(wanted, in_parts=in_parts))
            if shape.work.given is None or self._common:
                self._configure(shape)
        except BaseException as error:
            if shape is not None:
                shape.close()
            if isinstance(error, OutOfMemoryError):
                self._release()
            raise
        self._shapes[wanted] = self._now = shape

    def _work(self, wanted: tuple[int, ...], *, in_parts: bool) -> Work:
        if not in_parts:
            return Whole(self._engine, self._context(self._engine), self._info, wanted)
        parts = self._parts
        assert parts is not None
        return InParts(parts, self._context(parts.trunk), self._context(parts.tail), self._info, wanted)

    def _context(self, engine: PlanEngine) -> Any:
        if self._engine.captured:
            return engine.context()
        # No graph holds its state, so that one serves all shapes; where kernels are compiled with each, that is
        # seconds for every further one.
        if engine not in self._common:
            self._common[engine] = engine.context()
        return self._common[engine]

    def _configure(self, shape: "_Shape") -> None:
        shape.forget()
        self._fit(*shape.work.measure())
        shape.work.place(self._host, self._memory)
        shape.warm = False

    def _fit(self, host: dict[str, int], memory: dict[str, int]) -> None:
        pinned = {name: size for name, size in host.items() if _held(self._host, name) < size}
        small = {name: size for name, size in memory.items() if _held(self._memory, name) < size}
        if not pinned and not small:
            return
        # Every graph holds the old addresses, and the views keep the pinned memory from being freed.
        for shape in self._shapes.values():
            shape.forget()
        for name in pinned:
            _drop(self._host, name)
        for name in small:
            _drop(self._memory, name)
        for name, size in small.items():
            self._memory[name] = DeviceBuffer(self._device, size)
        for name, size in pinned.items():
            self._host[name] = PinnedBuffer(self._device, size)

    def _release(self) -> None:
        self._now = None
        with contextlib.suppress(InferenceError), self._device.bound():
            self._drop_contexts()
        # Once more where the context cannot be bound any longer: what is dropped cannot be leaked.
        self._drop_contexts()
        for name in list(self._memory):
            _drop(self._memory, name)
        for name in list(self._host):
            _drop(self._host, name)

    def _drop_contexts(self) -> None:
        for shape in self._shapes.values():
            shape.close()
        self._shapes.clear()
        self._common.clear()


def _held(buffers: Mapping[str, PinnedBuffer | DeviceBuffer], name: str) -> int:
    return buffers[name].size if name in buffers else 0


def _drop(buffers: dict[str, PinnedBuffer] | dict[str, DeviceBuffer], name: str) -> None:
    buffer = buffers.pop(name, None)
    if buffer is not None:
        buffer.close()


class _Shape:
    """What belongs to one shape: what it is computed with, and the graph of it."""

    def __init__(self, shape: tuple[int, ...], work: Work) -> None:
        self.shape = shape
        self.work = work
        self.graph: CudaGraph | None = None
        self.warm = False
        self.kept = False
        self.shaken = False
        self.broken = 0

    def forget(self) -> None:
        graph, self.graph = self.graph, None
        if graph is not None:
            graph.close()
        self.work.forget()

    def close(self) -> None:
        self.forget()
        self.work.close()
