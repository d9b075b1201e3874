"""Streams, events, and work that is captured once and launched as one. Not run on a GPU so far."""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime._cuda import call, constant, quietly
from esrgan_deploy.runtime._cuda_device import Device
from esrgan_deploy.runtime._faults import CaptureBrokenError, DeviceLostError

__all__ = ["CudaGraph", "Event", "Stream"]

_pausing = threading.Lock()
_pauses = 0
_resume = False


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
