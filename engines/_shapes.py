"""The sizes that a plan is built for."""

import dataclasses
import itertools
import re

from esrgan_deploy._errors import EngineBuildError

__all__ = ["Shape", "ShapeRange"]

Shape = tuple[int, int, int]

_SEGMENT = re.compile(r"(?:(\d+)x)?(\d+)x(\d+)", re.ASCII | re.IGNORECASE)
_EXAMPLES = (
    "allowed: 1x64x64:1x256x256:4x512x512 (min:opt:max, each NxHxW or HxW), or 1x256x256 for one fixed size"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The smallest, the usual and the largest input of one plan; TensorRT calls it an optimisation profile.

    Attributes:
        min: ``(N, H, W)`` of the smallest input that the plan accepts.
        opt: ``(N, H, W)`` that its kernels are chosen for.
        max: ``(N, H, W)`` of the largest; scratch memory is sized for it.
        size_multiple: Heights and widths are multiples of this.

    Raises:
        EngineBuildError: A number is under 1, not a multiple, or the three are not in order.
    """

    min: Shape
    opt: Shape
    max: Shape
    size_multiple: int = 1

    def __post_init__(self) -> None:
        for name in ("min", "opt", "max"):
            n, height, width = getattr(self, name)
            if min(n, height, width) < 1:
                raise EngineBuildError(
                    f"--shapes: {name} is {n}x{height}x{width}; batch, height and width are at least 1"
                )
            if height % self.size_multiple or width % self.size_multiple:
                up = tuple(-(-side // self.size_multiple) * self.size_multiple for side in (height, width))
                raise EngineBuildError(
                    f"--shapes: {name} is {n}x{height}x{width} and this model takes heights and widths that "
                    f"are multiples of {self.size_multiple}. Try: {n}x{up[0]}x{up[1]}"
                )
        for low, high in (("min", "opt"), ("opt", "max")):
            for axis, a, b in zip(
                ("batch", "height", "width"), getattr(self, low), getattr(self, high), strict=True
            ):
                if a > b:
                    raise EngineBuildError(
                        f"--shapes: the {axis} of {low} ({a}) is above that of {high} ({b}) in {self}; "
                        "allowed: min <= opt <= max on every axis"
                    )

    def __str__(self) -> str:
        """Write the range as `parse` reads it."""
        shapes = (self.min,) if self.static else (self.min, self.opt, self.max)
        return ":".join("x".join(map(str, shape)) for shape in shapes)

    @property
    def static(self) -> bool:
        """Whether there is one size only."""
        return self.min == self.opt == self.max

    @property
    def corners(self) -> tuple[Shape, ...]:
        """The optimum and every combination of the least and the most on each axis, smallest first."""
        ends = itertools.product(*zip(self.min, self.max, strict=True))
        shapes = {(n, height, width) for n, height, width in ends} | {self.opt}
        return tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1] * shape[2], shape)))

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a plan of this range takes a batch of ``(N, H, W)``."""
        return all(low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True))

    def checked(self, size_multiple: int) -> "ShapeRange":
        """Return the same range for a model whose heights and widths are multiples of ``size_multiple``.

        Raises:
            EngineBuildError: A height or width is not such a multiple.
        """
        return dataclasses.replace(self, size_multiple=size_multiple)

    @classmethod
    def parse(cls, text: str) -> "ShapeRange":
        """Read ``1x64x64:1x256x256:4x512x512``, or ``1x256x256`` for one fixed size.

        ``HxW`` means a batch of 1.

        Raises:
            EngineBuildError: The text is not of that form, or names a range that is not one.
        """
        shapes = [_shape(part, text) for part in text.split(":")]
        if len(shapes) not in (1, 3):
            raise EngineBuildError(f"--shapes: {text!r} names {len(shapes)} sizes; {_EXAMPLES}")
        return cls(min=shapes[0], opt=shapes[len(shapes) // 2], max=shapes[-1])

    @classmethod
    def fixed(cls, shape: Shape, *, size_multiple: int = 1) -> "ShapeRange":
        """Return the range that holds one size."""
        return cls(min=shape, opt=shape, max=shape, size_multiple=size_multiple)

    @classmethod
    def default(cls, size_multiple: int = 1) -> "ShapeRange":
        """Return what is built when nothing is asked for: one picture, 16×16 to 512×512, best at 256×256.

        The sides are multiples of every pixel-unshuffle factor in use, and rounded up to those of ``size_multiple``.
        """
        least, usual, most = (-(-side // size_multiple) * size_multiple for side in (16, 256, 512))
        return cls(
            min=(1, least, least), opt=(1, usual, usual), max=(1, most, most), size_multiple=size_multiple
        )


def _shape(part: str, text: str) -> Shape:
    match = _SEGMENT.fullmatch(part.strip())
    if match is None:
        raise EngineBuildError(f"--shapes: {part!r} in {text!r} is no size; {_EXAMPLES}")
    return int(match[1] or 1), int(match[2]), int(match[3])
