"""A checkpoint as a session, which PyTorch runs."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.pytorch._open import open_checkpoint as open_checkpoint

__getattr__, __dir__, __all__ = handed_on(__name__)
