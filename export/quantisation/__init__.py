"""INT8 and FP8 that keep the picture: where to quantise, with which scales, and what it costs in decibels.

`quantise_net` finds a recipe: from what occurs on pictures (room *calibration*), with weights that are rewritten and
rounded for it (*weights*), and with what the budget asks left in half precision (*search*).
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.quantisation._explain import explain_quantised
    from esrgan_deploy.export.quantisation._find_recipe import (
        FLOOR,
        Quantisation,
        pictures_for,
        quantise_net,
        reusable,
    )
    from esrgan_deploy.export.quantisation._options import QuantiseOptions
    from esrgan_deploy.export.quantisation._prepare import Preparation
    from esrgan_deploy.export.quantisation._recipe_file import KeptRecipe, Net, load_recipe, save_recipe
    from esrgan_deploy.export.quantisation._simulation import Simulation, apply_parameters, rounded, tensor_of

__all__ = [
    "FLOOR",
    "KeptRecipe",
    "Net",
    "Preparation",
    "Quantisation",
    "QuantiseOptions",
    "Simulation",
    "apply_parameters",
    "explain_quantised",
    "load_recipe",
    "pictures_for",
    "quantise_net",
    "reusable",
    "rounded",
    "save_recipe",
    "tensor_of",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_explain": ("explain_quantised",),
        "_find_recipe": ("FLOOR", "Quantisation", "pictures_for", "quantise_net", "reusable"),
        "_options": ("QuantiseOptions",),
        "_prepare": ("Preparation",),
        "_recipe_file": ("KeptRecipe", "Net", "load_recipe", "save_recipe"),
        "_simulation": ("Simulation", "apply_parameters", "rounded", "tensor_of"),
    },
)
