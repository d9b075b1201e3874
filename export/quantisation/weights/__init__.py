"""Weights that lose less when they are rounded."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.quantisation.weights._compensate import compensated, fitted_last
    from esrgan_deploy.export.quantisation.weights._equalise import factors, noise_gains, rescaled
    from esrgan_deploy.export.quantisation.weights._learn import reconstruct
    from esrgan_deploy.export.quantisation.weights._remainders import with_remainders

__all__ = [
    "compensated",
    "factors",
    "fitted_last",
    "noise_gains",
    "reconstruct",
    "rescaled",
    "with_remainders",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_compensate": ("compensated", "fitted_last"),
        "_equalise": ("factors", "noise_gains", "rescaled"),
        "_learn": ("reconstruct",),
        "_remainders": ("with_remainders",),
    },
)
