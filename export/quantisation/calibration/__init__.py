"""Pictures to calibrate on, and the ranges that they show."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.quantisation.calibration._activation_scales import (
        activation_steps,
        low_high,
        observe,
    )
    from esrgan_deploy.export.quantisation.calibration._drawn import SCENES, draw
    from esrgan_deploy.export.quantisation.calibration._output_ranges import aligned, output_ranges
    from esrgan_deploy.export.quantisation.calibration._pictures import (
        CalibrationPictures,
        calibration_pictures,
    )

__all__ = [
    "SCENES",
    "CalibrationPictures",
    "activation_steps",
    "aligned",
    "calibration_pictures",
    "draw",
    "low_high",
    "observe",
    "output_ranges",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_activation_scales": ("activation_steps", "low_high", "observe"),
        "_drawn": ("SCENES", "draw"),
        "_output_ranges": ("aligned", "output_ranges"),
        "_pictures": ("CalibrationPictures", "calibration_pictures"),
    },
)
