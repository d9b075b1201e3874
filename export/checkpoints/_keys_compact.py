"""The names and shapes of SRVGGNetCompact, which has one dialect."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.checkpoints._layout import Layout, conv_shape, first_gap

__all__ = ["compact_layout"]

_KEY = re.compile(r"body\.([0-9]{1,4})\.(?:weight|bias)")


def compact_layout(tensors: Mapping[str, Tensor], *, source: str, sha256: str) -> Layout | None:
    """Read the layout of a SRVGGNetCompact, or return None where the names are another family's.

    Even numbers are convolutions and odd ones PReLUs; the last convolution makes ``out_channels · scale²``
    channels. The net adds the nearest-neighbour picture, so that it gives as many channels as it takes.

    Raises:
        CheckpointError: It is one, and incomplete or of an activation that its weights do not tell.
    """
    matches = [_KEY.fullmatch(key) for key in tensors]
    if not matches or not all(matches):
        return None
    numbers = {int(match[1]) for match in matches if match}
    last = max(numbers)
    features, channels = conv_shape(tensors, "body.0.weight", source)
    if last >= 2 and not any(number % 2 for number in numbers):
        raise CheckpointError(
            f"{source} is a SRVGGNetCompact without PReLU weights: it was trained with ReLU or LeakyReLU, "
            "which weights do not tell apart; only PReLU, the default of its training code, is supported"
        )
    gap = first_gap(numbers)
    if gap is not None or last % 2 or last < 2:
        lacking = f"body.{last + 1 if gap is None else gap}.weight"
        raise CheckpointError(
            f"{source} is a SRVGGNetCompact without {lacking!r} (its layers go up to {last}, every second "
            "one a convolution, the last one as well); the file is incomplete, download or save it again"
        )
    made, _ = conv_shape(tensors, f"body.{last}.weight", source)
    scale = math.isqrt(made // channels)
    if scale == 0 or scale * scale * channels != made:
        raise CheckpointError(
            f"{source}: 'body.{last}.weight' makes {made} channels, which is no square times the {channels} "
            "channels of the picture that goes in; a SRVGGNetCompact gives as many as it takes"
        )
    spec = ModelSpec(
        architecture="srvggnetcompact",
        scale=scale,
        in_channels=channels,
        out_channels=channels,
        features=features,
        blocks=(last - 2) // 2,
        growth=0,
        source_sha256=sha256,
    )
    names = [
        f"body.{number}.{part}"
        for number in range(last + 1)
        for part in (("weight",) if number % 2 else ("weight", "bias"))
    ]
    return Layout(
        spec=spec, dialect="compact", title="a SRVGGNetCompact", keys=dict(zip(names, names, strict=True))
    )
