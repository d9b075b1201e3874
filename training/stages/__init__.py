"""What a step of each stage does."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.training.stages._gan import GanStage
    from esrgan_deploy.training.stages._psnr import LossNotFiniteError, PsnrStage, learning_rate

__all__ = ["GanStage", "LossNotFiniteError", "PsnrStage", "learning_rate"]

__getattr__, __dir__ = handed_on(
    __name__,
    {"_gan": ("GanStage",), "_psnr": ("LossNotFiniteError", "PsnrStage", "learning_rate")},
)
