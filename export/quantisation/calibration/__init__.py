"""Pictures to calibrate on, and the ranges that they show."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.quantisation.calibration._activation_scales import (
        activation_steps as activation_steps,
    )
    from esrgan_deploy.export.quantisation.calibration._activation_scales import low_high as low_high
    from esrgan_deploy.export.quantisation.calibration._activation_scales import observe as observe
    from esrgan_deploy.export.quantisation.calibration._drawn import SCENES as SCENES
    from esrgan_deploy.export.quantisation.calibration._drawn import draw as draw
    from esrgan_deploy.export.quantisation.calibration._output_ranges import aligned as aligned
    from esrgan_deploy.export.quantisation.calibration._output_ranges import output_ranges as output_ranges
    from esrgan_deploy.export.quantisation.calibration._pictures import (
        CalibrationPictures as CalibrationPictures,
    )
    from esrgan_deploy.export.quantisation.calibration._pictures import (
        calibration_pictures as calibration_pictures,
    )

__getattr__, __dir__, __all__ = handed_on(__name__)
