"""From a checkpoint to verified artefacts.

Importing this loads neither torch nor onnx; using its names does.
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export._export import export_model
    from esrgan_deploy.export._open_source import describe_spec, shipped_checkpoint
    from esrgan_deploy.export._options import ExportOptions, Precision
    from esrgan_deploy.export._scales import save_scales
    from esrgan_deploy.export.checkpoints import Checkpoint, load_checkpoint
    from esrgan_deploy.export.quantisation import QuantiseOptions

__all__ = [
    "Checkpoint",
    "ExportOptions",
    "Precision",
    "QuantiseOptions",
    "describe_spec",
    "export_model",
    "load_checkpoint",
    "save_scales",
    "shipped_checkpoint",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_export": ("export_model",),
        "_open_source": ("describe_spec", "shipped_checkpoint"),
        "_options": ("ExportOptions", "Precision"),
        "_scales": ("save_scales",),
        "checkpoints": ("Checkpoint", "load_checkpoint"),
        "quantisation": ("QuantiseOptions",),
    },
)
