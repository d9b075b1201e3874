"""Pictures, crops and what degrades them."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.training.data._crops import Crops as Crops
    from esrgan_deploy.training.data._crops import batches as batches
    from esrgan_deploy.training.data._degrade import RealEsrganDegradation as RealEsrganDegradation
    from esrgan_deploy.training.data._pictures import gather as gather

__getattr__, __dir__, __all__ = handed_on(__name__)
