"""From an ESRGAN-family checkpoint to a verified engine, and from a picture to a larger one."""

import importlib
from typing import TYPE_CHECKING, Any

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy._errors import BenchmarkError as BenchmarkError
    from esrgan_deploy._errors import CheckpointError as CheckpointError
    from esrgan_deploy._errors import DeviceLostError as DeviceLostError
    from esrgan_deploy._errors import EngineBuildError as EngineBuildError
    from esrgan_deploy._errors import EngineMismatchError as EngineMismatchError
    from esrgan_deploy._errors import EsrganDeployError as EsrganDeployError
    from esrgan_deploy._errors import ExportError as ExportError
    from esrgan_deploy._errors import InferenceError as InferenceError
    from esrgan_deploy._errors import MediaError as MediaError
    from esrgan_deploy._errors import MissingDependencyError as MissingDependencyError
    from esrgan_deploy._errors import OutOfMemoryError as OutOfMemoryError
    from esrgan_deploy._errors import ParityError as ParityError
    from esrgan_deploy._errors import TrainingError as TrainingError
    from esrgan_deploy._manifest import Artefact as Artefact
    from esrgan_deploy._manifest import Manifest as Manifest
    from esrgan_deploy._manifest import load_manifest as load_manifest
    from esrgan_deploy._spec import Form as Form
    from esrgan_deploy._spec import ModelSpec as ModelSpec
    from esrgan_deploy.runtime import Upscaler as Upscaler

    __version__: str
    """The version that is installed, such as ``"0.1.0"``."""

_get, __dir__, _names = handed_on(__name__)
__all__ = sorted([*_names, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("esrgan-deploy")
    return _get(name)
