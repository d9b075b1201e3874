"""Weights that lose less when they are rounded."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.quantisation.weights._compensate import compensated as compensated
    from esrgan_deploy.export.quantisation.weights._compensate import fitted_last as fitted_last
    from esrgan_deploy.export.quantisation.weights._equalise import factors as factors
    from esrgan_deploy.export.quantisation.weights._equalise import multipliers as multipliers
    from esrgan_deploy.export.quantisation.weights._equalise import noise_gains as noise_gains
    from esrgan_deploy.export.quantisation.weights._equalise import rescaled as rescaled
    from esrgan_deploy.export.quantisation.weights._learn import reconstruct as reconstruct
    from esrgan_deploy.export.quantisation.weights._remainders import with_remainders as with_remainders

__getattr__, __dir__, __all__ = handed_on(__name__)
