"""Pictures, crops and what degrades them."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.training.data._crops import Crops, batches
    from esrgan_deploy.training.data._degrade import RealEsrganDegradation
    from esrgan_deploy.training.data._pictures import gather

__all__ = ["Crops", "RealEsrganDegradation", "batches", "gather"]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_crops": ("Crops", "batches"),
        "_degrade": ("RealEsrganDegradation",),
        "_pictures": ("gather",),
    },
)
