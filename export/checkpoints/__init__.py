"""Checkpoints: read safely, recognised, and brought to one set of names."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.checkpoints._checkpoint import load_checkpoint
    from esrgan_deploy.export.checkpoints._identify import Checkpoint, empty_net
    from esrgan_deploy.export.checkpoints._official import OFFICIAL, folder_name, resolve_checkpoint
    from esrgan_deploy.export.checkpoints._read_file import read_tensors

__all__ = [
    "OFFICIAL",
    "Checkpoint",
    "empty_net",
    "folder_name",
    "load_checkpoint",
    "read_tensors",
    "resolve_checkpoint",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_checkpoint": ("load_checkpoint",),
        "_identify": ("Checkpoint", "empty_net"),
        "_official": ("OFFICIAL", "folder_name", "resolve_checkpoint"),
        "_read_file": ("read_tensors",),
    },
)
