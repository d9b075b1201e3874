"""ONNX Runtime on a CUDA device: one stream that computes, and slots that upload and download beside it.

A session of ONNX Runtime computes on one stream, which is given when it is opened (``user_compute_stream``); there is
no way to name another one for a run. So work of other streams is ordered against it by events, on the device; with
``disable_synchronize_execution_providers`` a run returns when its work is enqueued. Where a node of the graph has no
kernel on the device, or with the TensorRT provider before ONNX Runtime 1.18, a run waits for the device all the same.
Not run on a GPU so far.
"""

import contextlib
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError
from esrgan_deploy._optional import require
from esrgan_deploy.runtime.device import (
    Device,
    DeviceArray,
    DeviceBuffer,
    Event,
    ForeignArray,
    PinnedBuffer,
    Stream,
    StreamBuffer,
    call,
    fault_of,
    quietly,
)
from esrgan_deploy.runtime.sessions._checks import check_size, output_shape
from esrgan_deploy.runtime.sessions._protocol import Array, BatchOutput, SessionInfo
from esrgan_deploy.runtime.sessions.onnx._facts import DTYPES

__all__ = ["OrtCuda", "OrtCudaSlot", "bound", "element_type", "failure_of", "reason_of", "run_bound"]


def element_type(value: Any) -> str:
    """Return the dtype of a graph's input or output as numpy spells it; the type's own name where it has none."""
    return np.dtype(DTYPES[value.type]).name if value.type in DTYPES else str(value.type)


def bound(graph: Any, batch: ForeignArray, outputs: Sequence[ForeignArray]) -> Any:
    """Return an ``IOBinding`` of a graph to the memory of its input and of its outputs.

    Args:
        graph: An ``onnxruntime.InferenceSession`` with one input.
        batch: Its input.
        outputs: In the graph's order, of the shapes that it will make of the batch: with another one it fails.
    """
    binding = graph.io_binding()
    binding.bind_input(graph.get_inputs()[0].name, *_place(batch))
    for value, array in zip(graph.get_outputs(), outputs, strict=True):
        binding.bind_output(value.name, *_place(array))
    return binding


def run_bound(graph: Any, binding: Any, *, wait: bool) -> None:
    """Run a graph on what it is bound to.

    Args:
        graph: The ``onnxruntime.InferenceSession``.
        binding: From `bound`.
        wait: Whether to wait for the device; else the run's work is enqueued on the session's stream.

    Raises:
        Exception: ONNX Runtime's own, of many types.
    """
    options = None
    if not wait:
        options = require("onnxruntime", extra="cuda").RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    graph.run_with_iobinding(binding, options)


def failure_of(error: Exception, name: str, shape: tuple[int, ...]) -> InferenceError:
    """Return the error to raise for one of ONNX Runtime's: of memory, of a lost device, or of something else.

    Args:
        error: Of a run; ONNX Runtime has many types, none of them documented.
        name: Of the graph.
        shape: Of the batch.
    """
    return fault_of(str(error))(
        f"{name} failed on a batch of {'x'.join(map(str, shape))} ({reason_of(error)}); "
        "if memory ran out, use a smaller tile"
    )


def reason_of(error: Exception) -> str:
    """Return what an error of ONNX Runtime says, on one line and without its prefix."""
    # "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from ... failed:Protobuf parsing failed."
    text = one_line(error)
    return text.split(" : ", 2)[-1][:300] if text.startswith("[ONNXRuntimeError]") else text[:300]


def _place(array: ForeignArray) -> tuple[str, int, Any, list[int], int]:
    where = "cpu" if array.device < 0 else "cuda"
    return where, max(array.device, 0), np.dtype(array.dtype).type, list(array.shape), array.pointer


class OrtCuda:
    """The device of an ONNX Runtime session, and the stream that it computes on.

    Args:
        ordinal: Of the device.

    Raises:
        InferenceError: There is no such device, or the current context is not the one ONNX Runtime would use.
        MissingDependencyError: cuda-bindings is not installed.
    """

    def __init__(self, ordinal: int) -> None:
        self.device = Device(ordinal)
        if not _is_primary(self.device):
            self.device.close()
            raise InferenceError(
                f"the CUDA context that is current is not the primary one of device {ordinal}, and ONNX Runtime "
                "computes in no other; in PyCUDA use pycuda.autoprimaryctx, or a TensorRT plan"
            )
        with self.device.bound():
            self.stream = Stream(self.device)
            self._event = Event(self.device)
        self._end = weakref.finalize(self, self.device.close)
        self._end.atexit = False

    def enqueue(
        self,
        graph: Any,
        batch: ForeignArray,
        outputs: tuple[ForeignArray, ...],
        *,
        name: str,
        turn: threading.Lock,
        stream: int,
    ) -> None:
        """Enqueue a run between what is on a stream already and what comes to be there later.

        Args:
            graph: The ``onnxruntime.InferenceSession``.
            batch: Its input on the device.
            outputs: Its outputs on the device.
            name: Of the graph, for messages.
            turn: Held meanwhile: the computing stream serves one run at a time.
            stream: Handle of the stream to be ordered against.

        Raises:
            InferenceError: It failed; `OutOfMemoryError` and `DeviceLostError` can be answered.
        """  # noqa: DOC501  what failure_of returns
        with turn, self.device.bound():
            for handle in {stream, batch.stream, *(output.stream for output in outputs)}:
                if handle is not None and handle != self.stream.handle:
                    self._event.record(handle)
                    self._event.order(self.stream.handle)
            try:
                run_bound(graph, bound(graph, batch, outputs), wait=False)
            except Exception as error:
                # What was enqueued before it failed writes to what is freed on that stream now.
                with contextlib.suppress(InferenceError):
                    self._lead(stream)
                raise failure_of(error, name, batch.shape) from error
            self._lead(stream)

    def new_array(self, shape: tuple[int, ...], dtype: str, stream: int, *, owner: object) -> DeviceArray:
        """Return an array on the device, allocated in a stream's order; it keeps the stream's owner.

        Raises:
            OutOfMemoryError: There is not so much free.
        """
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        with self.device.bound():
            return DeviceArray(self.device, StreamBuffer(self.device, size, stream, owner), shape, kind)

    def close(self) -> None:
        """Let go of the context; a second call does nothing.

        It is released, and the stream destroyed, with the last slot and the last array that need them.
        """
        self._end()

    def _lead(self, stream: int) -> None:
        if stream != self.stream.handle:
            self._event.record(self.stream.handle)
            self._event.order(stream)


class OrtCudaSlot:
    """Pinned buffers, device buffers and a stream for one batch in flight; see `Slot` for the protocol.

    Args:
        cuda: Of the session.
        graph: The ``onnxruntime.InferenceSession``.
        info: Of the session.
        dtype: Of the result.
        turn: Held while a run is enqueued.
    """

    def __init__(
        self, cuda: OrtCuda, graph: Any, info: SessionInfo, *, dtype: str, turn: threading.Lock
    ) -> None:
        # In the order in which they may go: the graph computes on the stream.
        self._graph = graph
        self._cuda: OrtCuda | None = cuda
        self._info, self._turn = info, turn
        self._dtype = np.dtype(dtype)
        self._device = cuda.device.retain()
        with self._device.bound():
            self._stream = Stream(self._device)
            self._done = Event(self._device)
        self._shape: tuple[int, int, int] | None = None
        self._pinned: list[PinnedBuffer] = []
        self._memory: list[DeviceBuffer] = []
        self._arrays: list[ForeignArray] = []
        self._views: list[Array] = []

    def prepare(self, shape: tuple[int, int, int]) -> Array:
        """Return the pinned batch to fill; see `Slot.prepare`."""
        if shape != self._shape:
            check_size(self._info, shape)
            self._allocate(shape)
        return self._views[0]

    def start(self) -> None:
        """Enqueue upload, inference and download; see `Slot.start`.

        Raises:
            InferenceError: It was not prepared, or the device refuses it.
        """
        if self._cuda is None or not self._arrays:
            raise InferenceError(f"a slot of {self._info.name} was started before it was prepared")
        batch, *outputs = self._arrays
        with self._device.bound():
            self._stream.upload(batch.pointer, self._pinned[0].pointer, batch.nbytes)
            self._cuda.enqueue(
                self._graph,
                batch,
                tuple(outputs),
                name=self._info.name,
                turn=self._turn,
                stream=self._stream.handle,
            )
            for output, pinned in zip(outputs, self._pinned[1:], strict=True):
                self._stream.download(pinned.pointer, output.pointer, output.nbytes)
            self._done.record(self._stream.handle)

    def finish(self) -> BatchOutput:
        """Wait for the batch; see `Slot.finish`.

        Raises:
            InferenceError: It was not prepared, or the batch failed on the device.
        """
        if not self._arrays:
            raise InferenceError(f"a slot of {self._info.name} was asked for what it was not given")
        with self._device.bound():
            self._done.synchronize()
        return BatchOutput(*self._views[1:])

    def close(self) -> None:
        """Release the buffers, once the device is done with them; a second call does nothing."""
        self._release()
        if self._cuda is not None:
            self._graph = self._cuda = None
            self._done.close()
            self._stream.close()
            self._device.close()

    def _allocate(self, shape: tuple[int, int, int]) -> None:
        self._release()
        wanted: list[tuple[tuple[int, ...], np.dtype[Any]]] = [
            (self._info.batch_shape(*shape), self._info.dtype),
            (output_shape(self._info, shape), self._dtype),
        ]
        if self._info.watched:
            wanted.append(((shape[0], 3), np.dtype(np.float32)))
        with self._device.bound():
            try:
                for sides, dtype in wanted:
                    size = int(np.prod(sides, dtype=np.int64)) * dtype.itemsize
                    self._pinned.append(PinnedBuffer(self._device, size))
                    self._memory.append(DeviceBuffer(self._device, size))
                    self._views.append(self._pinned[-1].view(sides, dtype))
                    self._arrays.append(
                        ForeignArray(
                            pointer=self._memory[-1].pointer,
                            shape=sides,
                            dtype=dtype.name,
                            device=self._device.ordinal,
                            owner=self._memory[-1],
                        )
                    )
            except InferenceError:
                self._release()
                raise
        self._shape = shape

    def _release(self) -> None:
        self._shape = None
        for pinned in self._pinned:
            pinned.close()
        for memory in self._memory:
            memory.close()
        self._pinned, self._memory, self._arrays, self._views = [], [], [], []


def _is_primary(device: Device) -> bool:
    if not device.joined:
        return True
    handle = call("cuDeviceGet", device.ordinal)
    primary = int(call("cuDevicePrimaryCtxRetain", handle))
    quietly("cuDevicePrimaryCtxRelease", handle)
    return primary == device.context
