"""A plan on arrays and streams of others: no copy, and nothing waits for the host. Not run on a GPU so far."""

import contextlib
import math
import threading
import weakref
from typing import Any

from esrgan_deploy._errors import DeviceLostError, InferenceError
from esrgan_deploy.runtime.device import (
    Device,
    DeviceArray,
    Event,
    ForeignArray,
    Stream,
    StreamBuffer,
    borrow_array,
    call,
    stream_handle,
)
from esrgan_deploy.runtime.sessions._checks import check_batch, check_output, output_shape
from esrgan_deploy.runtime.sessions._protocol import SessionInfo
from esrgan_deploy.runtime.sessions.plan._engine import ALIGNMENT, PlanEngine, aligned

__all__ = ["PlanOnDevice"]

STREAMS = 8


class PlanOnDevice:
    """Runs a plan on streams of others, with a context and scratch memory for each of the last eight.

    Args:
        engine: The plan.
        device: Where it runs.
        info: Of the session.
    """

    def __init__(self, engine: PlanEngine, device: Device, info: SessionInfo) -> None:
        self._engine, self._device, self._info = engine, device, info
        self._turn = threading.Lock()
        self._places: dict[int, _Place] = {}
        # Their memory cannot be freed on streams that were destroyed meanwhile, closed or only collected.
        self._end = weakref.finalize(self, _close_places, self._places, device)
        self._end.atexit = False
        self._own: Stream | None = None
        self._closed = False

    def run(self, array: object, *, stream: object | None = None, out: object | None = None) -> object:
        """Enqueue one batch; see `Session.run_on_device`.

        Everything is checked before anything is enqueued. A result that is not given a place is allocated in the
        stream's order, from the driver's pool, which gives memory back to the system whenever the stream is waited
        for: a caller in a hurry passes ``out``.

        Raises:
            InferenceError: The session is closed, the array does not fit, or the device refuses it.
        """
        with self._turn:
            if self._closed:
                raise InferenceError(f"the session of {self._info.name} is closed; open it again")
            with self._device.bound():
                return self._run(array, stream, out)

    def close(self) -> None:
        """Wait for what is under way, and release everything; a second call does nothing."""
        with self._turn:
            self._closed = True
            self._end()
            # It is destroyed with the last array that is freed on it.
            self._own = None

    def _run(self, array: object, stream: object | None, out: object | None) -> object:
        handle = self._handle(stream)
        batch = borrow_array(array, stream=handle)
        nhw = check_batch(batch, self._info)
        self._check_aligned(batch, "the batch")
        target = None
        if out is not None:
            target = borrow_array(out, stream=handle)
            check_output(target, self._info, nhw, dtype=self._engine.out_dtype.name, batch=batch)
            self._check_aligned(target, "out")
        if stream is None:
            # Whatever fills the batch may do so on a stream that is not known here.
            self._device.synchronize()
        place = self._place(handle)
        shapes = self._engine.shape_context(place.context, self._info.batch_shape(*nhw))
        if shapes[self._engine.output] != output_shape(self._info, nhw):
            raise InferenceError(
                f"{self._info.name} makes {shapes[self._engine.output]} of {batch.shape}, not "
                f"{output_shape(self._info, nhw)}; export it again"
            )
        made = self._enqueue(place, batch, target, shapes, stream)
        if self._own is not None and stream is None:
            self._own.synchronize()
        return out if out is not None else made

    def _handle(self, stream: object | None) -> int:
        if stream is None:
            self._own = self._own or Stream(self._device)
            return self._own.handle
        handle = stream_handle(stream)
        if int(call("cuStreamGetCtx", handle)) != self._device.context:
            raise InferenceError(
                f"the stream {handle:#x} belongs to another CUDA context than {self._info.name}; make that context "
                "current when you open the model, or give a stream of the device's primary context"
            )
        if int(call("cuStreamIsCapturing", handle)):
            raise InferenceError(
                f"the stream {handle:#x} is being captured, and {self._info.name} allocates while it runs; run it "
                "outside of the capture"
            )
        return handle

    def _check_aligned(self, array: ForeignArray, what: str) -> None:
        if array.pointer % ALIGNMENT:
            raise InferenceError(
                f"{what} begins at {array.pointer:#x} and TensorRT takes multiples of {ALIGNMENT}; give an array "
                "that was allocated by itself, not a slice"
            )

    def _place(self, handle: int) -> "_Place":
        place = self._places.pop(handle, None)
        while len(self._places) >= STREAMS:
            self._places.pop(next(iter(self._places))).close(self._device)
        if place is None:
            place = _Place(handle, self._engine.context(on_device=True), Event(self._device))
        self._places[handle] = place
        return place

    def _enqueue(
        self,
        place: "_Place",
        batch: ForeignArray,
        target: ForeignArray | None,
        shapes: dict[str, tuple[int, ...]],
        stream: object | None,
    ) -> DeviceArray | None:
        engine, handle = self._engine, place.handle
        # A stream may be destroyed, and another one get its handle, while work of the first still runs.
        place.done.order(handle)
        for array in (batch, target):
            if array is not None and array.stream is not None and array.stream != handle:
                with contextlib.closing(Event(self._device)) as filled:
                    filled.record(array.stream)
                    filled.order(handle)
        place.hold(self._device, "", engine.scratch_size(place.context))
        addresses = {engine.input: batch.pointer}
        if engine.health:
            addresses[engine.health] = place.hold(
                self._device, engine.health, _bytes(shapes[engine.health], 4)
            )
        made = None
        if target is None:
            made = self._new_array(shapes[engine.output], handle, stream)
        addresses[engine.output] = made.pointer if made is not None else target.pointer if target else 0
        scratch = place.memory[""]
        engine.give_memory(place.context, (scratch.pointer, scratch.size), addresses.items())
        try:
            engine.enqueue(place.context, handle)
        except InferenceError:
            self._raise_if_lost(handle)
            # Part of it may be on its way.
            with contextlib.suppress(InferenceError):
                place.done.record(handle)
            raise
        place.done.record(handle)
        return made

    def _new_array(self, shape: tuple[int, ...], handle: int, stream: object | None) -> DeviceArray:
        size = _bytes(shape, self._engine.out_dtype.itemsize)
        owner = self._own if stream is None else stream
        memory = StreamBuffer(self._device, size, handle, owner)
        return DeviceArray(self._device, memory, shape, self._engine.out_dtype)

    def _raise_if_lost(self, handle: int) -> None:
        try:
            call("cuStreamQuery", handle)
        except DeviceLostError:
            raise
        except InferenceError:
            # CUDA_ERROR_NOT_READY: it is still at work.
            return


class _Place:
    """What one stream keeps: a context, memory that it works in, and the end of its last work."""

    def __init__(self, handle: int, context: Any, done: Event) -> None:
        self.handle = handle
        self.context = context
        self.done = done
        self.memory: dict[str, StreamBuffer] = {}

    def hold(self, device: Device, name: str, size: int) -> int:
        """Return the address of memory of at least that size."""
        size = aligned(size)
        held = self.memory.get(name)
        if held is None or held.size < size:
            if held is not None:
                del self.memory[name]
                held.close()
            self.memory[name] = held = StreamBuffer(device, size, self.handle)
        return held.pointer

    def close(self, device: Device) -> None:
        with contextlib.suppress(InferenceError), device.bound():
            self.done.synchronize()
        with contextlib.suppress(InferenceError), device.bound():
            self.context = None
        self.context = None
        for memory in self.memory.values():
            memory.close_idle()
        self.memory.clear()
        self.done.close()


def _close_places(places: dict[int, _Place], device: Device) -> None:
    for place in places.values():
        place.close(device)
    places.clear()


def _bytes(shape: tuple[int, ...], itemsize: int) -> int:
    return math.prod(shape) * itemsize
