"""INT8 and FP8 that keep the picture: where to quantise, with which scales, and what it costs in decibels.

`quantise_net` finds a recipe: from what occurs on pictures (room *calibration*), with weights that are rewritten and
rounded for it (*weights*), and with what the budget asks left in half precision (*search*).
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.quantisation._explain import explain_quantised as explain_quantised
    from esrgan_deploy.export.quantisation._find_recipe import Quantisation as Quantisation
    from esrgan_deploy.export.quantisation._find_recipe import demand as demand
    from esrgan_deploy.export.quantisation._find_recipe import pictures_for as pictures_for
    from esrgan_deploy.export.quantisation._find_recipe import quantise_net as quantise_net
    from esrgan_deploy.export.quantisation._find_recipe import reusable as reusable
    from esrgan_deploy.export.quantisation._options import QuantiseOptions as QuantiseOptions
    from esrgan_deploy.export.quantisation._prepare import Preparation as Preparation
    from esrgan_deploy.export.quantisation._recipe_file import KeptRecipe as KeptRecipe
    from esrgan_deploy.export.quantisation._recipe_file import Net as Net
    from esrgan_deploy.export.quantisation._recipe_file import load_recipe as load_recipe
    from esrgan_deploy.export.quantisation._recipe_file import save_recipe as save_recipe
    from esrgan_deploy.export.quantisation._simulation import Simulation as Simulation
    from esrgan_deploy.export.quantisation._simulation import apply_parameters as apply_parameters
    from esrgan_deploy.export.quantisation._simulation import rounded as rounded
    from esrgan_deploy.export.quantisation._simulation import tensor_of as tensor_of

__getattr__, __dir__, __all__ = handed_on(__name__)
