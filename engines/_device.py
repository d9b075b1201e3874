"""The GPU at hand, as far as a build has to know it."""

import dataclasses
from typing import Any

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy._flavour import gpu_is_usable
from esrgan_deploy._optional import require

__all__ = ["Device", "current_device"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """The current CUDA device.

    Attributes:
        name: As the driver names it.
        compute_capability: ``"9.0"`` and so on.
        free_bytes: Memory that nothing has taken.
        driver: Newest CUDA version that the driver knows, ``13000`` for 13.0.
        runtime: CUDA version of the runtime library.
    """

    name: str
    compute_capability: str
    free_bytes: int
    driver: int
    runtime: int


def current_device() -> Device | None:
    """Return the current CUDA device, or None where no GPU can be used. Opens its primary context.

    Raises:
        EngineBuildError: There is a GPU, and CUDA fails when asked about it.
    """
    if not gpu_is_usable():
        return None
    cuda = require("cuda.bindings.runtime", extra="tensorrt")
    properties = _checked(
        "cudaGetDeviceProperties",
        *cuda.cudaGetDeviceProperties(_checked("cudaGetDevice", *cuda.cudaGetDevice())),
    )
    status, free, _total = cuda.cudaMemGetInfo()
    return Device(
        name=properties.name.split(b"\0")[0].decode(errors="replace"),
        compute_capability=f"{properties.major}.{properties.minor}",
        free_bytes=int(_checked("cudaMemGetInfo", status, free)),
        driver=int(_checked("cudaDriverGetVersion", *cuda.cudaDriverGetVersion())),
        runtime=int(_checked("cudaRuntimeGetVersion", *cuda.cudaRuntimeGetVersion())),
    )


def _checked(call: str, status: Any, value: Any) -> Any:
    if int(status) != 0:
        raise EngineBuildError(
            f"{call} failed with {status.name}. Run: nvidia-smi to see the state of the GPU"
        )
    return value
