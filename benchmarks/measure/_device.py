"""The time of a batch that lies on the GPU already, by the GPU's own clock.

Written against cuda.bindings 13; it runs where there is an NVIDIA GPU and nowhere else.
"""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks.measure._timing import Sampler
from esrgan_deploy.runtime import Session

__all__ = ["device_sampler"]

# Batches between the two events, behind one that keeps the GPU busy while the host enqueues them.
REPEATS = 4


def device_sampler(session: Session, batch: npt.NDArray[Any]) -> tuple[Sampler, Callable[[], None]]:
    """Return a sampler of seconds per batch on the device, and what releases its memory.

    Two CUDA events stand around the enqueue of a batch that was uploaded once, on a stream of our own; neither the
    upload nor the download nor the host's share is between them.

    Args:
        session: On a GPU.
        batch: The input, in the session's form.

    Raises:
        InferenceError: CUDA fails, or the session takes nothing that lies on the device.
        MissingDependencyError: cuda-bindings is not installed.
    """
    cuda = require("cuda.bindings.runtime", extra="cuda")
    held: list[Callable[[], object]] = []
    stream: Any = None
    out: Any = None

    def release() -> None:
        nonlocal stream, out
        while held:
            held.pop()()
        # Whoever still has the result has the stream that it is freed on.
        out = None
        stream = None

    try:
        _checked(*cuda.cudaSetDevice(session.info.device))
        stream = _Stream(cuda)
        pointer = _checked(*cuda.cudaMalloc(batch.nbytes))
        held.append(lambda: cuda.cudaFree(pointer))
        upload = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        _checked(*cuda.cudaMemcpy(pointer, batch.ctypes.data, batch.nbytes, upload))
        events = []
        for _ in range(2):
            event = _checked(*cuda.cudaEventCreate())
            held.append(lambda event=event: cuda.cudaEventDestroy(event))  # type: ignore[misc]
            events.append(event)
        source = _Resident(batch, int(pointer))
        # The first call makes the output; the timed ones write into it, because an allocation waits for the GPU.
        out = session.run_on_device(source, stream=stream)
        _checked(*cuda.cudaStreamSynchronize(stream.handle))
    except BaseException:
        release()
        raise

    def once() -> float:
        session.run_on_device(source, stream=stream, out=out)
        _checked(*cuda.cudaEventRecord(events[0], stream.handle))
        for _ in range(REPEATS):
            session.run_on_device(source, stream=stream, out=out)
        _checked(*cuda.cudaEventRecord(events[1], stream.handle))
        _checked(*cuda.cudaEventSynchronize(events[1]))
        milliseconds: float = _checked(*cuda.cudaEventElapsedTime(*events))
        return float(milliseconds) / 1e3 / REPEATS

    return once, release


class _Stream:
    """A stream that does not wait for the default one; destroyed when neither we nor a result on it need it."""

    def __init__(self, cuda: Any) -> None:
        self.handle = int(_checked(*cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)))
        weakref.finalize(self, cuda.cudaStreamDestroy, self.handle).atexit = False

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return the protocol's version and the handle."""
        return 0, self.handle


class _Resident:
    """Device memory as an array; see numba's CUDA Array Interface, version 3."""

    def __init__(self, like: npt.NDArray[Any], pointer: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": like.shape,
            "typestr": np.dtype(like.dtype).str,
            "data": (pointer, False),
            "strides": None,
            "version": 3,
        }


def _checked(status: Any, value: Any = None) -> Any:
    if int(status) != 0:
        raise InferenceError(
            f"CUDA failed with {status.name} while a batch was timed. Run: nvidia-smi to see the GPU"
        )
    return value
