"""Training of the generators that `esrgan_deploy.export` exports.

Importing this loads no torch; using its names does.
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.training._config import TrainConfig, read_config
    from esrgan_deploy.training._trainer import Trained, crops_of, train
    from esrgan_deploy.training.models import interpolate

__all__ = ["TrainConfig", "Trained", "crops_of", "interpolate", "read_config", "train"]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_config": ("TrainConfig", "read_config"),
        "_trainer": ("Trained", "crops_of", "train"),
        "models": ("interpolate",),
    },
)
