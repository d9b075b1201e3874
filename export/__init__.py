"""From a checkpoint to verified artefacts.

Importing this loads neither torch nor onnx; using its names does.
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export._export import export_model as export_model
    from esrgan_deploy.export._open_source import describe_spec as describe_spec
    from esrgan_deploy.export._open_source import shipped_checkpoint as shipped_checkpoint
    from esrgan_deploy.export._options import ExportOptions as ExportOptions
    from esrgan_deploy.export._options import Precision as Precision
    from esrgan_deploy.export._scales import save_scales as save_scales
    from esrgan_deploy.export.checkpoints import Checkpoint as Checkpoint
    from esrgan_deploy.export.checkpoints import load_checkpoint as load_checkpoint
    from esrgan_deploy.export.quantisation import QuantiseOptions as QuantiseOptions

__getattr__, __dir__, __all__ = handed_on(__name__)
