"""Streams, events and buffers on a device, and who owns them."""

import contextlib
import ctypes
import dataclasses
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import DeviceLostError, InferenceError
from esrgan_deploy.runtime.device._context import Device
from esrgan_deploy.runtime.device._driver import call, constant, quietly, structure
from esrgan_deploy.runtime.device._faults import CaptureBrokenError

__all__ = ["CudaGraph", "DeviceBuffer", "Event", "PinnedBuffer", "Planes", "Stream", "StreamBuffer"]


_pausing = threading.Lock()
_pauses = 0
_resume = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planes:
    """A rectangle of one or more planes that lie one after another, by where it begins in the first of them.

    Attributes:
        pointer: Its first sample.
        pitch: Bytes from a row to the next.
        rows: Of a plane, those outside of the rectangle among them.
        pinned: Whether it is memory of the processor.
    """

    pointer: int
    pitch: int
    rows: int
    pinned: bool = False

    def at(self, row: int, offset: int) -> "Planes":
        """Return the rectangle that begins so many rows and bytes further on."""
        return dataclasses.replace(self, pointer=self.pointer + row * self.pitch + offset)


class Stream:
    """A stream that does not wait for the default one.

    Args:
        device: Its context is current in the calling thread.

    Raises:
        InferenceError: The driver refuses.
    """

    def __init__(self, device: Device) -> None:
        self.handle = int(call("cuStreamCreate", constant("CUstream_flags", "CU_STREAM_NON_BLOCKING")))
        self._device = device
        self._end = device.releases(self, "cuStreamDestroy", self.handle)

    def upload(self, target: int, source: int, size: int) -> None:
        """Enqueue a copy from pinned memory to the device.

        Raises:
            InferenceError: The driver refuses.
        """
        call("cuMemcpyHtoDAsync", target, source, size, self.handle)

    def download(self, target: int, source: int, size: int) -> None:
        """Enqueue a copy from the device to pinned memory.

        Raises:
            InferenceError: The driver refuses.
        """
        call("cuMemcpyDtoHAsync", target, source, size, self.handle)

    def copy(self, target: Planes, source: Planes, size: tuple[int, int, int]) -> None:
        """Enqueue a copy of a rectangle in each of some planes.

        Args:
            target: Where to.
            source: Where from.
            size: Bytes of a row, rows, planes.

        Raises:
            InferenceError: The driver refuses.
        """
        how = structure("CUDA_MEMCPY3D")
        pinned = constant("CUmemorytype", "CU_MEMORYTYPE_HOST")
        device = constant("CUmemorytype", "CU_MEMORYTYPE_DEVICE")
        for side, planes in (("dst", target), ("src", source)):
            setattr(how, f"{side}MemoryType", pinned if planes.pinned else device)
            setattr(how, f"{side}{'Host' if planes.pinned else 'Device'}", planes.pointer)
            setattr(how, f"{side}Pitch", planes.pitch)
            setattr(how, f"{side}Height", planes.rows)
        how.WidthInBytes, how.Height, how.Depth = size
        call("cuMemcpy3DAsync", how, self.handle)

    def capture(self, enqueue: Callable[[], None]) -> "CudaGraph":
        """Record what a function enqueues on this stream, without running it.

        Nothing is collected meanwhile, in the whole process: what is freed by the thread that captures breaks the
        capture, and stays allocated.

        Raises:
            CaptureBrokenError: Another thread broke it; a later one may succeed.
            InferenceError: Something that it does cannot be captured; the stream is usable all the same.
        """
        with self._device.exclusive, _no_collection():
            return self._capture(enqueue)

    def _capture(self, enqueue: Callable[[], None]) -> "CudaGraph":
        # Other threads may allocate meanwhile, this one may not: an allocation would not be in the graph.
        call(
            "cuStreamBeginCapture",
            self.handle,
            constant("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"),
        )
        try:
            enqueue()
        except BaseException as error:
            broken = self._give_up_capture()
            if (
                broken is not None
                and isinstance(error, InferenceError)
                and not isinstance(error, DeviceLostError)
            ):
                # TensorRT only says that it failed, the driver that the capture did.
                raise broken from error
            raise
        graph = int(call("cuStreamEndCapture", self.handle))
        try:
            return CudaGraph(self._device, int(call("cuGraphInstantiate", graph, 0)))
        finally:
            quietly("cuGraphDestroy", graph)

    def synchronize(self) -> None:
        """Wait until the stream is empty, without Python's lock.

        Raises:
            InferenceError: Something that was enqueued failed.
        """
        call("cuStreamSynchronize", self.handle)

    def close(self) -> None:
        """Destroy the stream; a second call does nothing."""
        self._end()

    def _give_up_capture(self) -> CaptureBrokenError | None:
        # Nothing else takes a stream out of its capture; a broken one gives no graph.
        try:
            graph = int(call("cuStreamEndCapture", self.handle))
        except CaptureBrokenError as broken:
            return broken
        except InferenceError:
            return None
        if graph:
            quietly("cuGraphDestroy", graph)
        return None


class CudaGraph:
    """A captured graph, ready to be launched. Made by `Stream.capture`."""

    def __init__(self, device: Device, handle: int) -> None:
        self.handle = handle
        self._end = device.releases(self, "cuGraphExecDestroy", self.handle)

    def launch(self, stream: Stream) -> None:
        """Enqueue all of it at once.

        Raises:
            InferenceError: The driver refuses.
        """
        call("cuGraphLaunch", self.handle, stream.handle)

    def close(self) -> None:
        """Destroy the graph; what was launched of it still runs to its end. A second call does nothing."""
        self._end()


class Event:
    """A point in a stream that others can wait for; it measures no time.

    Args:
        device: Its context is current in the calling thread.

    Raises:
        InferenceError: The driver refuses.
    """

    def __init__(self, device: Device) -> None:
        self.handle = int(call("cuEventCreate", constant("CUevent_flags", "CU_EVENT_DISABLE_TIMING")))
        self._end = device.releases(self, "cuEventDestroy", self.handle)

    def record(self, stream: int) -> None:
        """Set the point to where a stream stands.

        Raises:
            InferenceError: The driver refuses.
        """
        call("cuEventRecord", self.handle, stream)

    def order(self, stream: int) -> None:
        """Enqueue that what follows on a stream waits for the point; at once over where none was set.

        Raises:
            InferenceError: The driver refuses.
        """
        call("cuStreamWaitEvent", stream, self.handle, 0)

    def synchronize(self) -> None:
        """Wait here until the point is reached.

        Raises:
            InferenceError: Something before it failed.
        """
        call("cuEventSynchronize", self.handle)

    def close(self) -> None:
        """Destroy the event; a second call does nothing."""
        self._end()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    # Counted, as two devices may capture at a time, and the first to end must not turn it on for the other.
    global _pauses, _resume
    with _pausing:
        if not _pauses:
            _resume = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _pausing:
            _pauses -= 1
            if not _pauses and _resume:
                gc.enable()


class PinnedBuffer:
    """Page-locked memory of the processor, which the device copies from and to by itself.

    Views of it outlive it: the memory is freed when the buffer is closed and the last view is gone, so that a result
    which a caller kept is never an address of nothing.

    Args:
        device: Whose context the memory belongs to; current in the calling thread.
        size: Bytes.

    Raises:
        OutOfMemoryError: So much cannot be pinned.
    """

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        self.pointer = int(call("cuMemHostAlloc", size, 0))
        self._memory: Any = (ctypes.c_ubyte * size).from_address(self.pointer)
        device.releases(self._memory, "cuMemFreeHost", self.pointer)

    def view(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the front of the memory as an array, C-contiguous."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._memory, dtype, count).reshape(shape)

    def close(self) -> None:
        """Free the memory as soon as nothing looks at it any more; a second call does nothing."""
        self._memory = None


class DeviceBuffer:
    """Memory of the device, aligned to 256 bytes as the driver does it.

    Args:
        device: Its context is current in the calling thread.
        size: Bytes.

    Raises:
        OutOfMemoryError: There is not so much free.
    """

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        self.pointer = int(call("cuMemAlloc", size))
        self._end = device.releases(self, "cuMemFree", self.pointer)

    def close(self) -> None:
        """Free the memory, once the device is done with it; a second call does nothing."""
        self._end()


class StreamBuffer:
    """Memory of the device, allocated and freed in a stream's order: neither waits for anything.

    Args:
        device: Its context is current in the calling thread.
        size: Bytes.
        stream: Handle of the stream.
        owner: Keeps the stream alive until the memory is freed; None where its maker promised to.

    Raises:
        OutOfMemoryError: There is not so much free.
    """

    def __init__(self, device: Device, size: int, stream: int, owner: object = None) -> None:
        self.size = size
        self.stream = stream
        self.pointer = int(call("cuMemAllocAsync", size, stream))
        self._device = device
        self._end = device.releases(self, "cuMemFreeAsync", self.pointer, stream, keep=owner)

    def close(self) -> None:
        """Free the memory when the stream gets there; a second call does nothing."""
        self._end()

    def close_idle(self) -> None:
        """Free the memory now, whose last use is known to be over: the stream itself may be gone."""
        if self._end.detach() is not None:
            self._device.discard("cuMemFree", self.pointer)
            self._device.close()
