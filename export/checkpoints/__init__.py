"""Checkpoints: read safely, recognised, and brought to one set of names."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.checkpoints._checkpoint import load_checkpoint as load_checkpoint
    from esrgan_deploy.export.checkpoints._identify import Checkpoint as Checkpoint
    from esrgan_deploy.export.checkpoints._official import OFFICIAL as OFFICIAL
    from esrgan_deploy.export.checkpoints._official import folder_name as folder_name
    from esrgan_deploy.export.checkpoints._official import resolve_checkpoint as resolve_checkpoint
    from esrgan_deploy.export.checkpoints._read_file import read_tensors as read_tensors

__getattr__, __dir__, __all__ = handed_on(__name__)
