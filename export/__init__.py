"""From a checkpoint to verified artefacts.

Importing this loads neither torch nor onnx; using its names does.
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export._checkpoint import Checkpoint, load_checkpoint
    from esrgan_deploy.export._export import export_model
    from esrgan_deploy.export._options import ExportOptions

__all__ = ["Checkpoint", "ExportOptions", "export_model", "load_checkpoint"]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_checkpoint": ("Checkpoint", "load_checkpoint"),
        "_export": ("export_model",),
        "_options": ("ExportOptions",),
    },
)
