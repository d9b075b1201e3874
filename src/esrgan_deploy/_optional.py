"""Imports that wait: packages of an extra until they are needed, names of a room until they are asked for."""

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from esrgan_deploy._errors import MissingDependencyError

__all__ = ["handed_on", "require"]


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
    # Here, because importlib.metadata costs more than all else that a bare import of this package loads.
    import importlib.metadata

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


def handed_on(
    package: str, homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a package whose names are imported on first use (PEP 562).

    A command's ``--help`` then waits for neither numpy nor torch, whatever a room has beside what it asks for.

    Args:
        package: The package's ``__name__``.
        homes: The names that each of its modules gives.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *home, *sys.modules[package].__all__})
