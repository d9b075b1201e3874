"""What a device can fail with, and what libraries say when it does."""

import re

from esrgan_deploy._errors import DeviceLostError, InferenceError, OutOfMemoryError

__all__ = ["CaptureBrokenError", "fault_of"]


class CaptureBrokenError(InferenceError):
    """The capture of a graph was broken, maybe by another thread; a later one may succeed."""


# The words are those of the sources and of the projects' issue trackers: ONNX Runtime's bfc_arena.cc ("Failed to
# allocate memory for requested buffer of size", "Available memory of … is smaller than requested bytes of …") and
# cuda_call.cc ("CUDA failure 2: out of memory", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"), TensorRT's "Cuda
# Error in allocate: 2 (out of memory)" and "Error Code 2: OutOfMemory", PyTorch's "DefaultCPUAllocator: can't
# allocate memory".
OUT_OF_MEMORY = re.compile(
    r"out[ _]?of[ _]?memory|memoryallocation|failed to allocate memory|smaller than requested bytes"
    r"|STATUS_ALLOC_FAILED|bad[ _]alloc|can't allocate memory|unable to allocate|not enough memory",
    re.IGNORECASE,
)

# After these statuses of the CUDA runtime (cudaError_t in driver_types.h: "this leaves the process in an inconsistent
# state and any further CUDA work will return the same error") the device computes nothing more in this process. The
# texts are those of cudaGetErrorString; ONNX Runtime writes them after "CUDA failure", PyTorch after "CUDA error:".
LOST = re.compile(
    r"CUDA failure (46|77|214|220|70[029]|71[04-9]|721|911|999)\b"
    r"|CUDA_ERROR_(ILLEGAL_ADDRESS|LAUNCH_FAILED|LAUNCH_TIMEOUT|ECC_UNCORRECTABLE|CONTEXT_IS_DESTROYED|UNKNOWN)"
    r"|illegal memory access|illegal instruction was encountered|unspecified launch failure|misaligned address"
    r"|device-side assert|launch timed out|hardware stack error|invalid program counter|invalid address space"
    r"|uncorrectable (ECC|NVLink) error|device\(s\) is/are busy or unavailable|context is destroyed"
    r"|CUDA error: unknown error",
    re.IGNORECASE,
)

# 900, 901 and 906 of the CUDA runtime, as cudaGetErrorString words them: what another thread does to a capture.
BROKEN_CAPTURE = re.compile(
    r"operation not permitted when stream is capturing|previous error during capture"
    r"|legacy stream depend on a capturing",
    re.IGNORECASE,
)


def fault_of(text: str) -> type[InferenceError]:
    """Return the error to raise for a library's text.

    A device that is lost is not short of memory, whatever else the text says.

    Args:
        text: Of the exception, as the library wrote it.

    Returns:
        `DeviceLostError`, `OutOfMemoryError`, `CaptureBrokenError`, or plain `InferenceError`.
    """
    if LOST.search(text):
        return DeviceLostError
    if BROKEN_CAPTURE.search(text):
        return CaptureBrokenError
    return OutOfMemoryError if OUT_OF_MEMORY.search(text) else InferenceError
