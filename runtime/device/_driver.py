"""The CUDA driver: whether there is one, and the one place where its statuses are read.

Written against cuda.bindings 13 (12.9 has the same names); nothing of it was run on a GPU so far. What was shown
without one: every name and number of arguments against the installed bindings, and that these release Python's lock
inside a call (with a library that only sleeps in the driver's place).
"""

import ctypes
import functools
import os
from typing import Any

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import DeviceLostError, InferenceError, MissingDependencyError, OutOfMemoryError
from esrgan_deploy._optional import require
from esrgan_deploy.runtime.device._faults import CaptureBrokenError

__all__ = [
    "call",
    "constant",
    "cuda_device_count",
    "gpu_is_there",
    "gpu_label",
    "libcuda",
    "quietly",
    "structure",
]

# After one of these every further call in the context fails as well (CUresult in cuda.h: "the process must be
# terminated and relaunched", "the device cannot be used"), so no smaller tile and no second try helps.
LOST = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ASSERT",
        "CONTAINED",
        "CONTEXT_IS_DESTROYED",
        "DEINITIALIZED",
        "DEVICE_UNAVAILABLE",
        "ECC_UNCORRECTABLE",
        "EXTERNAL_DEVICE",
        "HARDWARE_STACK_ERROR",
        "ILLEGAL_ADDRESS",
        "ILLEGAL_INSTRUCTION",
        "INVALID_ADDRESS_SPACE",
        "INVALID_PC",
        "LAUNCH_FAILED",
        "LAUNCH_TIMEOUT",
        "MISALIGNED_ADDRESS",
        "MPS_CLIENT_TERMINATED",
        "NVLINK_UNCORRECTABLE",
        "TENSOR_MEMORY_LEAK",
        "UNKNOWN",
    )
)
OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
# What a capture is told that something broke, and what breaks one.
BROKEN_CAPTURE = frozenset(
    f"CUDA_ERROR_STREAM_CAPTURE_{name}" for name in ("IMPLICIT", "INVALIDATED", "UNSUPPORTED")
)
ADVICE = {
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "update the NVIDIA driver",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process holds the GPU alone. Run: nvidia-smi to see which",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "the GPU's memory is faulty. Run: nvidia-smi -q -d ECC",
    "CUDA_ERROR_NO_DEVICE": "no GPU is visible. Run: nvidia-smi -L, and look at CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_NOT_SUPPORTED": "the GPU or its driver lacks it; update the NVIDIA driver, or use the .onnx",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the NVIDIA driver was updated and not loaded yet; restart the machine",
    OUT_OF_MEMORY: "use a smaller tile or fewer slots, or free the GPU. Run: nvidia-smi to see who holds its memory",
}


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA driver and return what it gives beside its status.

    Args:
        name: As ``cuda.bindings.driver`` spells it, such as ``"cuMemAlloc"``.
        arguments: Its own; handles and addresses may be integers.

    Returns:
        None, the one value, or a tuple of several.

    Raises:
        OutOfMemoryError: The device's memory, or memory that can be pinned, is short.
        CaptureBrokenError: A graph is being captured, and it cannot be done meanwhile, or the capture was broken.
        DeviceLostError: The context is broken; only a new process helps.
        InferenceError: Every other status, or there is no driver.
    """  # noqa: DOC501  what _error returns
    try:
        status, *values = getattr(_driver(), name)(*arguments)
    except (RuntimeError, OSError) as error:
        # DynamicLibNotFoundError of cuda.pathfinder, a RuntimeError, comes with the first call.
        raise InferenceError(
            f"{name} cannot be called, as the CUDA driver does not load ({one_line(error)}). Run: nvidia-smi to "
            "see whether it is installed"
        ) from error
    if int(status) != 0:
        raise _error(name, getattr(status, "name", f"status {int(status)}"))
    return values[0] if len(values) == 1 else tuple(values) or None


def quietly(name: str, *arguments: Any) -> None:
    """Call a function that releases something, whatever comes of it: on a lost device each of them fails."""
    try:
        call(name, *arguments)
    except InferenceError:
        return


def constant(enumeration: str, member: str) -> Any:
    """Return a member of one of the driver's enumerations, ``constant("CUstream_flags", "CU_STREAM_DEFAULT")``."""
    return getattr(getattr(_driver(), enumeration), member)


def structure(name: str) -> Any:
    """Return a new one of the driver's structures, ``structure("CUDA_MEMCPY3D")``, filled with zeros."""
    return getattr(_driver(), name)()


def libcuda() -> Any | None:
    """Return the driver's own library, None where there is none: what it is asked needs no CUDA package installed."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def cuda_device_count() -> int:
    """Return the number of CUDA devices; 0 where there is no driver or it does not start. Creates no context."""
    driver, count = libcuda(), ctypes.c_int(0)
    if driver is None or driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu_is_there() -> bool:
    """Whether an NVIDIA GPU is here and not hidden from CUDA, without starting CUDA: a process may fork after it.

    NVML is asked. It knows of `CUDA_VISIBLE_DEVICES` nothing, of which only what hides all is looked at.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    count = ctypes.c_uint(0)
    if nvml.nvmlInit_v2() != 0:
        return False
    known = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    nvml.nvmlShutdown()
    return bool(known and count.value)


def gpu_label(ordinal: int, name: str = "") -> str:
    """Return a device as a user tells it from others: ``"cuda:0 (NVIDIA A10, 0000:1B:00.0)"``.

    Unless told otherwise CUDA counts the fastest first and nvidia-smi along the PCI bus: among mixed cards the number
    alone says two things. Creates no context.

    Args:
        ordinal: In CUDA's own order.
        name: What else is known, where the driver cannot be asked or cuda-bindings is not installed.
    """
    try:
        call("cuInit", 0)
        device = call("cuDeviceGet", ordinal)
        said = [call("cuDeviceGetName", 256, device), call("cuDeviceGetPCIBusId", 64, device)]
        facts = ", ".join(text.split(b"\0")[0].decode(errors="replace") for text in said)
    except (InferenceError, MissingDependencyError):
        facts = name
    return f"cuda:{ordinal} ({facts})" if facts else f"cuda:{ordinal}"


@functools.cache
def _driver() -> Any:
    return require("cuda.bindings.driver", extra="rtx")


def _error(call_name: str, status: str) -> InferenceError:
    if status == OUT_OF_MEMORY:
        return OutOfMemoryError(f"{call_name} failed with {status}; {ADVICE[status]}")
    if status in BROKEN_CAPTURE:
        return CaptureBrokenError(
            f"{call_name} failed with {status}; a CUDA graph is being captured, and one of the two is refused. "
            "Capture when nothing else waits for the whole device, or give stream= so that nothing has to"
        )
    if status in LOST:
        advice = ADVICE.get(status, "the GPU's context is broken; start the process again")
        return DeviceLostError(f"{call_name} failed with {status}; {advice}")
    advice = ADVICE.get(status, "Run: nvidia-smi to see the state of the GPU")
    return InferenceError(f"{call_name} failed with {status}; {advice}")
