"""Whether what a session made is a picture."""

import math

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime.sessions._protocol import Array, BatchOutput, SessionInfo

__all__ = ["bad_picture_error", "judge", "spread_of"]

FLAT = 0.5 / 255
"""Spread in 0..1 up to which a picture counts as one value: half a level of 8 bits."""

CONTENT = 16 / 255
"""Spread of the input above which its picture cannot be one value: the toe of a video's limited range."""


def judge(made: BatchOutput, info: SessionInfo, used: int, *, given: Array | None = None) -> str | None:
    """Look at a batch that a session made.

    A picture is bad if a sample of it is NaN or infinite, or if it is one value (a spread of half a level at most)
    where the input was not (a spread over 16 levels): black film makes black film, and nothing else does.

    A graph that watches itself has said all this in `BatchOutput.health`, which costs nothing to read. Of one that
    does not, the float form is searched for NaN here; whether a picture may be one value is known where ``given`` is
    there only. A uint8 graph that does not watch itself hides its NaN, most often as black.

    Args:
        made: What the session made.
        info: Of the session.
        used: How many pictures of the batch count, from the first on.
        given: The input batch in the session's form, where it is at hand; `BatchOutput.health` comes first.

    Returns:
        None if every picture is sound, else what is wrong with the first bad one, to be read after "made":
        ``"NaN or infinite samples in picture 3 of 4 (mean nan)"``.
    """
    if made.health is not None:
        return _judge_health(made.health[:used])
    for number, picture in enumerate(made.batch[:used], start=1):
        # A NaN anywhere is both the least and the greatest sample, so two passes say all there is to say.
        low, high = float(picture.min()), float(picture.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            return f"NaN or infinite samples in picture {number} of {used}"
        if given is not None and _spread(picture, low, high) <= FLAT:
            content = spread_of(given[number - 1])
            if content > CONTENT:
                return (
                    f"one value only in picture {number} of {used} (of an input with a spread of "
                    f"{content * 255:.0f} levels)"
                )
    return None


def bad_picture_error(phrase: str, info: SessionInfo) -> InferenceError:
    """Return the error that says what a session made instead of a picture, and what to run instead.

    Args:
        phrase: From `judge`.
        info: Of the session.
    """
    # Quantised graphs hold in fp16 what is not quantised.
    if info.computes == "fp16":
        advice = "float16 overflowed; leave precision out, or make it bf16"
    elif info.precision in ("fp16", "int8", "fp8") or info.dtype == np.float16:
        advice = "float16 overflowed; use the fp32 artefact (model.onnx) or a bf16 one"
    elif info.precision or info.form == "float":
        advice = "the weights are broken; run: esrgan-export again from a sound checkpoint"
    else:
        advice = "use the fp32 artefact (model.onnx) or a bf16 one, if this one computes in float16"
    return InferenceError(f"{info.name} made {phrase}, which is no picture: {advice}")


def _judge_health(health: npt.NDArray[np.float32]) -> str | None:
    mean, spread, content = health.T
    # Written so that a NaN, which compares as false, is bad.
    sound = np.isfinite(mean) & ((spread > FLAT) | (content <= CONTENT))
    if sound.all():
        return None
    first = int(np.argmin(sound))
    where = f"in picture {first + 1} of {len(health)}"
    if not np.isfinite(mean[first]):
        return f"NaN or infinite samples {where} (mean {mean[first]:g})"
    return (
        f"one value only {where} (a spread of {spread[first] * 255:.2g} levels, of an input with one of "
        f"{content[first] * 255:.0f})"
    )


def spread_of(samples: Array) -> float:
    """Return the spread of samples, uint8, uint16 or floating 0..1, after clipping: in 0..1."""
    return _spread(samples, float(samples.min()), float(samples.max()))


def _spread(picture: Array, low: float, high: float) -> float:
    peak = float(np.iinfo(picture.dtype).max) if picture.dtype.kind == "u" else 1.0
    return min(max(high / peak, 0.0), 1.0) - min(max(low / peak, 0.0), 1.0)
