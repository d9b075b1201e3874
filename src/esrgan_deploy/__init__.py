"""From an ESRGAN-family checkpoint to a verified engine, and from a picture to a larger one."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esrgan_deploy._errors import (
        BenchmarkError,
        CheckpointError,
        DeviceLostError,
        EngineBuildError,
        EngineMismatchError,
        EsrganDeployError,
        ExportError,
        InferenceError,
        MediaError,
        MissingDependencyError,
        OutOfMemoryError,
        ParityError,
        TrainingError,
    )
    from esrgan_deploy._spec import ModelSpec
    from esrgan_deploy.runtime._upscaler import Upscaler

    __version__: str

__all__ = [
    "BenchmarkError",
    "CheckpointError",
    "DeviceLostError",
    "EngineBuildError",
    "EngineMismatchError",
    "EsrganDeployError",
    "ExportError",
    "InferenceError",
    "MediaError",
    "MissingDependencyError",
    "ModelSpec",
    "OutOfMemoryError",
    "ParityError",
    "TrainingError",
    "Upscaler",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Resolved on first use, so that a command's --help loads nothing that it does not need.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("esrgan-deploy")
    elif name == "Upscaler":
        value = importlib.import_module("esrgan_deploy.runtime._upscaler").Upscaler
    elif name == "ModelSpec":
        value = importlib.import_module("esrgan_deploy._spec").ModelSpec
    else:
        value = getattr(importlib.import_module("esrgan_deploy._errors"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
