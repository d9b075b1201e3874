"""What reading a dialect comes to, and the shapes that it starts from."""

import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor

from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._spec import ModelSpec

__all__ = ["Layout", "UnknownFamilyError", "conv_shape", "first_gap"]


class UnknownFamilyError(CheckpointError):
    """The tensors are of no family that this package knows; spandrel may know it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A net that was recognised by its names, before its tensors are checked.

    Attributes:
        spec: The net.
        dialect: Whose names they are.
        title: The net and the dialect, for a message.
        keys: The file's key for each parameter of the net.
    """

    spec: ModelSpec
    dialect: str
    title: str
    keys: dict[str, str]


def conv_shape(tensors: Mapping[str, Tensor], key: str, source: str) -> tuple[int, int]:
    """Return the output and input channels of a 3×3 convolution.

    Raises:
        CheckpointError: There is no such tensor, or it is not the weight of a 3×3 convolution.
    """
    if key not in tensors:
        raise CheckpointError(f"{source} has no {key!r}; the file is incomplete, download or save it again")
    shape = tuple(tensors[key].shape)
    if len(shape) != 4 or shape[2:] != (3, 3) or not all(shape):
        raise CheckpointError(
            f"{source}: {key!r} has the shape {shape}; a 3x3 convolution of these nets has (out, in, 3, 3)"
        )
    return shape[0], shape[1]


def first_gap(numbers: Iterable[int], start: int = 0) -> int | None:
    """Return the first whole number from ``start`` on that is missing below the largest, or None."""
    for expected, number in enumerate(sorted(set(numbers)), start=start):
        if number != expected:
            return expected
    return None
