"""Imports that wait: packages of an extra until they are needed, names of a room until they are asked for."""

import dis
import functools
import importlib
import sys
from collections.abc import Callable
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


def handed_on(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package that imports its names on first use (PEP 562).

    They are the names that the calling module imports under ``if TYPE_CHECKING``, which never runs. A command's
    ``--help`` then waits for neither numpy nor torch, whatever a room has beside what it asks for.

    Args:
        package: The package's ``__name__``.
    """
    room = sys.modules[package]
    home: dict[str, str] = {}
    # The compiled imports, not the file's text: a frozen application has no file.
    for step in dis.get_instructions(sys._getframe(1).f_code):
        if step.opname == "IMPORT_NAME":
            module = step.argval
        elif step.opname == "IMPORT_FROM" and step.argval not in vars(room):
            home[step.argval] = module

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(room, name, value)
        return value

    return get, lambda: sorted({*vars(room), *room.__all__}), sorted(home)
