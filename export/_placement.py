"""Where a generator is quantised: one answer for the export's Q/DQ pass and for training with fake quantisation."""

from esrgan_deploy._errors import ExportError
from esrgan_deploy._spec import ModelSpec

__all__ = ["LARGEST", "LEAST_STEP", "QUANTISED", "placement"]

QUANTISED = ("int8", "fp8")

LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The value that the scale maps the largest magnitude to: symmetric INT8, FP8 E4M3."""

LEAST_STEP = 2.0**-20
"""Scales are stored in half precision; below this it has only a few bits left."""


def placement(spec: ModelSpec) -> dict[str, str]:
    """Return, for each quantised convolution by its name in the module, whose activation scale it takes.

    The convolutions of the dense blocks (or of the body of an SRVGGNetCompact) are quantised at their input and
    in their weights; the first and the last convolution and everything after the trunk stay in floating point,
    and residual sums take the unquantised trunk. The five convolutions of a dense block share one scale, so
    that a feature is quantised once and its concatenations never again.

    Raises:
        ExportError: The architecture is not one whose convolutions are known.
    """
    if spec.architecture == "rrdbnet":
        groups = [f"body.{block}.rdb{rdb}" for block in range(spec.blocks) for rdb in (1, 2, 3)]
        return {f"{group}.conv{number}": group for group in groups for number in range(1, 6)}
    if spec.architecture == "srvggnetcompact":
        # Convolutions and activations alternate; the first and the last convolution are left out.
        names = [f"body.{2 * number}" for number in range(1, spec.blocks + 1)]
        return {name: name for name in names}
    raise ExportError(
        f"{spec.architecture} cannot be quantised; rrdbnet and srvggnetcompact can. Run: --precision fp16"
    )
