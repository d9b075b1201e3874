"""What the quantised formats can hold, and where training with fake quantisation puts them."""

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.quantisation._structure import layers

__all__ = ["LARGEST", "LEAST_STEP", "QUANTISED", "folds", "placement"]

QUANTISED = ("int8", "fp8")

LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The value that the scale maps the largest magnitude to: symmetric INT8, FP8 E4M3."""

LEAST_STEP = 2.0**-20
"""Scales are stored in half precision; below this it has only a few bits left."""


def placement(spec: ModelSpec) -> dict[str, str]:
    """Return by name of each convolution that training quantises whose activation scale it takes.

    Those of the dense blocks, or of the body of an SRVGGNetCompact; see `layers` for the whole net.

    Raises:
        ExportError: The architecture is not one whose convolutions are known.
    """
    return {layer.name: layer.group for layer in layers(spec) if layer.place == "body"}


def folds(spec: ModelSpec) -> dict[str, float]:
    """Return by name of each convolution that training quantises what the export multiplies its weights by.

    Raises:
        ExportError: The architecture is not one whose convolutions are known.
    """
    return {layer.name: layer.fold for layer in layers(spec) if layer.place == "body"}
