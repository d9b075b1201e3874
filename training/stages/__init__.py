"""What a step of each stage does."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.training.stages._gan import GanStage as GanStage
    from esrgan_deploy.training.stages._psnr import LossNotFiniteError as LossNotFiniteError
    from esrgan_deploy.training.stages._psnr import PsnrStage as PsnrStage
    from esrgan_deploy.training.stages._psnr import learning_rate as learning_rate

__getattr__, __dir__, __all__ = handed_on(__name__)
