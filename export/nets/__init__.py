"""The generators: modules, their stages, and what their convolutions are."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.nets._convolutions import LARGEST as LARGEST
    from esrgan_deploy.export.nets._convolutions import LEAST_STEP as LEAST_STEP
    from esrgan_deploy.export.nets._convolutions import QUANTISED as QUANTISED
    from esrgan_deploy.export.nets._convolutions import Layer as Layer
    from esrgan_deploy.export.nets._convolutions import Quantised as Quantised
    from esrgan_deploy.export.nets._convolutions import Rescaling as Rescaling
    from esrgan_deploy.export.nets._convolutions import counted as counted
    from esrgan_deploy.export.nets._convolutions import folds as folds
    from esrgan_deploy.export.nets._convolutions import layers as layers
    from esrgan_deploy.export.nets._convolutions import placement as placement
    from esrgan_deploy.export.nets._convolutions import rescalings as rescalings
    from esrgan_deploy.export.nets._convolutions import share_of as share_of
    from esrgan_deploy.export.nets._generators import RRDB as RRDB
    from esrgan_deploy.export.nets._generators import SPAN as SPAN
    from esrgan_deploy.export.nets._generators import Generator as Generator
    from esrgan_deploy.export.nets._generators import RRDBNet as RRDBNet
    from esrgan_deploy.export.nets._generators import SRVGGNetCompact as SRVGGNetCompact
    from esrgan_deploy.export.nets._generators import Stage as Stage
    from esrgan_deploy.export.nets._generators import State as State
    from esrgan_deploy.export.nets._generators import empty_net as empty_net
    from esrgan_deploy.export.nets._generators import output_of as output_of

__getattr__, __dir__, __all__ = handed_on(__name__)
