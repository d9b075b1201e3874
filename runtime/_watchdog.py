"""Placeholder until the watchdog lands: to be rewritten as its task says."""

import numpy as np

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime._session import Made, SessionInfo

__all__ = ["bad_picture_error", "judge"]


def judge(made: Made, info: SessionInfo, used: int) -> str | None:
    """Say what is wrong with a batch, or None."""
    if info.form == "uint8" or np.isfinite(made.batch[:used]).all():
        return None
    return "NaN or infinite samples"


def bad_picture_error(phrase: str, info: SessionInfo) -> InferenceError:
    """Return the error."""
    if info.dtype == np.float16:
        advice = "float16 overflowed; use the fp32 artefact (model.onnx) or a bf16 one"
    else:
        advice = "the weights are broken; run: esrgan-export again from a sound checkpoint"
    return InferenceError(f"{info.name} made {phrase}, which is no picture: {advice}")
