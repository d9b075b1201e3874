"""From an ESRGAN-family checkpoint to a verified engine, and from a picture to a larger one."""

import importlib
from typing import TYPE_CHECKING, Any

from esrgan_deploy._optional import handed_on

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
    from esrgan_deploy._manifest import Artefact, Manifest, load_manifest
    from esrgan_deploy._spec import Form, ModelSpec
    from esrgan_deploy.runtime import Upscaler

    __version__: str
    """The version that is installed, such as ``"0.1.0"``."""

__all__ = [
    "Artefact",
    "BenchmarkError",
    "CheckpointError",
    "DeviceLostError",
    "EngineBuildError",
    "EngineMismatchError",
    "EsrganDeployError",
    "ExportError",
    "Form",
    "InferenceError",
    "Manifest",
    "MediaError",
    "MissingDependencyError",
    "ModelSpec",
    "OutOfMemoryError",
    "ParityError",
    "TrainingError",
    "Upscaler",
    "__version__",
    "load_manifest",
]


_get, __dir__ = handed_on(
    __name__,
    {
        "_errors": tuple(name for name in __all__ if name.endswith("Error")),
        "_manifest": ("Artefact", "Manifest", "load_manifest"),
        "_spec": ("Form", "ModelSpec"),
        "runtime": ("Upscaler",),
    },
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("esrgan-deploy")
    return _get(name)
