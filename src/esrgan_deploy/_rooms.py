"""How a room hands on what it shows, without importing the files behind it before a name is asked for."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["handed_on"]


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

    return get, lambda: sorted({*vars(sys.modules[package]), *home})
