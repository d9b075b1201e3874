"""A checkpoint as a session, which PyTorch runs."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.pytorch._open import open_checkpoint

__all__ = ["open_checkpoint"]

__getattr__, __dir__ = handed_on(__name__, {"_open": ("open_checkpoint",)})
