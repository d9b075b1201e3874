"""From a checkpoint to verified artefacts.

Importing this loads neither torch nor onnx; using its names does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esrgan_deploy.export._checkpoint import Checkpoint, load_checkpoint
    from esrgan_deploy.export._export import export_model
    from esrgan_deploy.export._options import ExportOptions

__all__ = ["Checkpoint", "ExportOptions", "export_model", "load_checkpoint"]

_HOMES = {
    "Checkpoint": "_checkpoint",
    "ExportOptions": "_options",
    "export_model": "_export",
    "load_checkpoint": "_checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
