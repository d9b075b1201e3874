"""One batch of a plan in flight: its stream, its memory, and its work as one CUDA graph. Not run on a GPU so far."""

import contextlib
from typing import Any

import numpy as np

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
from esrgan_deploy.runtime.sessions.plan._engine import PlanEngine, aligned

__all__ = ["PlanSlot"]

SHAPES = 4
# Captures of one shape that fail one after the other before none is tried any more: once or twice it was another
# thread, or another's memory.
CAPTURES = 3


class PlanSlot:
    """Stream, buffers and contexts of one batch in flight; see `Slot` for the protocol.

    The first batch of a shape is enqueued piece by piece, which also warms up; the second is captured, with upload
    and download, or, where another thread breaks that, a later one; from then on a batch is one launch. A graph
    holds addresses and the state of its context: each of the last four shapes keeps a context of its own, all of
    them on the slot's one scratch memory, as only one runs at a time; and where a buffer has to grow,
    every graph is dropped.

    Args:
        engine: The plan.
        device: Where it runs.
        info: Of the session.

    Raises:
        InferenceError: The session is closed, or the driver refuses.
    """

    def __init__(self, engine: PlanEngine, device: Device, info: SessionInfo) -> None:
        self._engine, self._device, self._info = engine, device, info
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._now: _Shape | None = None
        self._buffers: dict[str, _Pair] = {}
        self._scratch: DeviceBuffer | None = None
        self._common: Any = None
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
            check_size(self._info, shape)
            with self._device.bound():
                self._arrange(wanted)
        assert self._now is not None
        return self._now.views[self._engine.input]

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
                self._engine.keep_kernels()
        health = shape.views[self._engine.health] if self._engine.health else None
        return BatchOutput(shape.views[self._engine.output], health)

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
        capturable = getattr(shape.context, "is_stream_capturable", None)
        try:
            if capturable is not None and not capturable(self._stream.handle):
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
        engine, stream = self._engine, self._stream
        source = self._buffers[engine.input]
        stream.upload(source.device.pointer, source.host.pointer, shape.views[engine.input].nbytes)
        again, shape.shaken = shape.shaken, False
        engine.enqueue(shape.context, stream.handle, again=again)
        for name in (engine.output, engine.health):
            if name:
                made = self._buffers[name]
                stream.download(made.host.pointer, made.device.pointer, shape.views[name].nbytes)

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

    def _arrange(self, wanted: tuple[int, ...]) -> None:
        self._now = None
        shape = self._shapes.pop(wanted, None)
        while len(self._shapes) >= SHAPES:
            self._shapes.pop(next(iter(self._shapes))).close()
        try:
            if shape is None:
                shape = _Shape(wanted, self._context())
            if not shape.views or self._common is not None:
                self._configure(shape)
        except BaseException as error:
            if shape is not None:
                shape.close()
            if isinstance(error, OutOfMemoryError):
                self._release()
            raise
        self._shapes[wanted] = self._now = shape

    def _context(self) -> Any:
        if self._engine.captured:
            return self._engine.context()
        # No graph holds its state, so that one serves all shapes; where kernels are compiled with each, that is
        # seconds for every further one.
        self._common = self._common or self._engine.context()
        return self._common

    def _configure(self, shape: "_Shape") -> None:
        engine, context = self._engine, shape.context
        shape.forget()
        outputs = engine.shape_context(context, shape.shape)
        kinds = {
            engine.input: engine.dtype,
            engine.output: engine.out_dtype,
            engine.health: np.dtype(np.float32),
        }
        arrays = {
            name: (sides, kinds[name]) for name, sides in {engine.input: shape.shape, **outputs}.items()
        }
        sizes = {name: int(np.prod(sides)) * kind.itemsize for name, (sides, kind) in arrays.items()}
        self._fit(sizes, engine.scratch_size(context))
        assert self._scratch is not None
        addresses = [(name, self._buffers[name].device.pointer) for name in arrays]
        engine.give_memory(context, (self._scratch.pointer, self._scratch.size), addresses)
        shape.warm = False
        for name, (sides, kind) in arrays.items():
            view = self._buffers[name].host.view(sides, kind)
            view.flags.writeable = name == engine.input
            shape.views[name] = view

    def _fit(self, sizes: dict[str, int], scratch: int) -> None:
        small = [name for name, size in sizes.items() if self._held(name) < size]
        short = self._scratch is None or self._scratch.size < scratch
        if not small and not short:
            return
        # Every graph holds the old addresses, and the views keep the pinned memory from being freed.
        for shape in self._shapes.values():
            shape.forget()
        if short:
            self._drop_scratch()
            self._scratch = DeviceBuffer(self._device, aligned(scratch))
        for name in small:
            pair = self._buffers.pop(name, None)
            if pair is not None:
                pair.close()
            self._buffers[name] = _Pair(self._device, sizes[name])

    def _held(self, name: str) -> int:
        pair = self._buffers.get(name)
        return 0 if pair is None else pair.host.size

    def _drop_scratch(self) -> None:
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            scratch.close()

    def _release(self) -> None:
        self._now = None
        with contextlib.suppress(InferenceError), self._device.bound():
            self._drop_contexts()
        # Once more where the context cannot be bound any longer: what is dropped cannot be leaked.
        self._drop_contexts()
        self._drop_scratch()
        for pair in self._buffers.values():
            pair.close()
        self._buffers.clear()

    def _drop_contexts(self) -> None:
        for shape in self._shapes.values():
            shape.close()
        self._shapes.clear()
        self._common = None


class _Shape:
    """What belongs to one shape: a context that is set to it, its graph, and its views of the pinned memory."""

    def __init__(self, shape: tuple[int, ...], context: Any) -> None:
        self.shape = shape
        self.context = context
        self.views: dict[str, Array] = {}
        self.graph: CudaGraph | None = None
        self.warm = False
        self.kept = False
        self.shaken = False
        self.broken = 0

    def forget(self) -> None:
        graph, self.graph = self.graph, None
        if graph is not None:
            graph.close()
        self.views.clear()

    def close(self) -> None:
        self.forget()
        self.context = None


class _Pair:
    """Memory of one tensor on both sides."""

    def __init__(self, device: Device, size: int) -> None:
        self.host = PinnedBuffer(device, size)
        try:
            self.device = DeviceBuffer(device, size)
        except InferenceError:
            self.host.close()
            raise

    def close(self) -> None:
        self.device.close()
        self.host.close()
