"""Training of the generators that `esrgan_deploy.export` exports.

Importing this loads no torch; using its names does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esrgan_deploy.training._config import TrainConfig, read_config
    from esrgan_deploy.training._interpolate import interpolate
    from esrgan_deploy.training._trainer import Trained, train

__all__ = ["TrainConfig", "Trained", "interpolate", "read_config", "train"]

_HOMES = {
    "TrainConfig": "_config",
    "Trained": "_trainer",
    "interpolate": "_interpolate",
    "read_config": "_config",
    "train": "_trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
