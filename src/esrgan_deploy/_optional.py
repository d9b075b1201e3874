"""Optional packages, imported where they are needed and nowhere else."""

import functools
import importlib
import importlib.metadata
from types import ModuleType

from esrgan_deploy._errors import MissingDependencyError

__all__ = ["require"]


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or say which command installs it.

    Args:
        module: Dotted name of the module, such as ``"torch"``.
        extra: The extra of this package that brings it, such as ``"export"``.

    Raises:
        MissingDependencyError: It is not installed, or it is installed and does not import.
    """
    if module == "onnxruntime":
        _refuse_two_onnxruntimes()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module}.".startswith(f"{error.name}."):
            raise MissingDependencyError(
                f"{module} is installed but needs {error.name}, which is not. "
                f"Run: pip install 'esrgan-deploy[{extra}]'"
            ) from error
        raise MissingDependencyError(
            f"{module} is not installed. Run: pip install 'esrgan-deploy[{extra}]'"
        ) from error
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise MissingDependencyError(
            f"{module} is installed but does not import ({reason}). "
            f"Run: pip install --force-reinstall 'esrgan-deploy[{extra}]'"
        ) from error


@functools.cache
def _refuse_two_onnxruntimes() -> None:
    # Both distributions unpack into the folder `onnxruntime`: whichever came last overwrote parts of the
    # other, and what is left fails in ways that name neither.
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(found) > 1:
        raise MissingDependencyError(
            f"{' and '.join(found)} are both installed and overwrite each other: the extras cpu and cuda "
            "exclude each other. Run: pip uninstall -y onnxruntime onnxruntime-gpu, "
            "then pip install 'esrgan-deploy[cpu]' or 'esrgan-deploy[cuda]'"
        )
