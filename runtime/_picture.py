"""A picture as a file holds it: samples, and what has to travel with them."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Picture"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    r"""Samples and metadata.

    Attributes:
        pixels: ``(H, W)`` gray, or ``(H, W, C)`` with C of 2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha);
            alpha is not premultiplied; uint8 or uint16; the right way up.
        icc: The ICC profile, byte for byte.
        exif: The EXIF block, beginning with ``Exif\0\0``, without orientation, sizes and thumbnail.
        dpi: Resolution in dots per inch, ``(x, y)``.
        png_colour: The chunks by which a PNG says what its samples mean where it has no ICC profile
            (``gAMA``, ``cHRM``, ``sRGB``, ``cICP``), as ``(name, data)``.
        notes: What was left out on the way, one sentence each.
    """

    pixels: npt.NDArray[Any]
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    png_colour: tuple[tuple[bytes, bytes], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (2, 3, 4)) or 0 in shape:
            raise ValueError(f"Picture.pixels has the shape {shape}; allowed are (H, W) and (H, W, 2 to 4)")
        if dtype not in (np.uint8, np.uint16):
            raise ValueError(f"Picture.pixels is of {dtype}; allowed are uint8 and uint16")

    @property
    def channels(self) -> int:
        """1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha."""
        return 1 if self.pixels.ndim == 2 else int(self.pixels.shape[2])

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels in (2, 4)

    def with_pixels(self, pixels: npt.NDArray[Any]) -> "Picture":
        """Return a picture of other samples with the same metadata."""
        return dataclasses.replace(self, pixels=pixels)
