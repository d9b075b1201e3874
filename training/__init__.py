"""Training of the generators that `esrgan_deploy.export` exports.

Importing this loads no torch; using its names does.
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.training._config import TrainConfig as TrainConfig
    from esrgan_deploy.training._config import read_config as read_config
    from esrgan_deploy.training._trainer import Trained as Trained
    from esrgan_deploy.training._trainer import crops_of as crops_of
    from esrgan_deploy.training._trainer import train as train
    from esrgan_deploy.training.models import interpolate as interpolate

__getattr__, __dir__, __all__ = handed_on(__name__)
