"""A picture: its samples and metadata, and the EXIF that is still true after it was turned upright and enlarged."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Picture", "carried_exif"]


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


EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005
ORIENTATION = 0x0112

# What describes this file's samples and not the scene: sizes, layout, strips, tiles, colour map, profile.
STRUCTURE = frozenset(
    {
        *(0x00FE, 0x00FF, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0107, 0x010A, 0x0111, 0x0112, 0x0115),
        *(0x0116, 0x0117, 0x0118, 0x0119, 0x011C, 0x0120, 0x0121, 0x0122, 0x0123, 0x0124, 0x0125, 0x013D),
        *(0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x014A, 0x0152, 0x0153, 0x0154, 0x0155, 0x015B),
        *(0x0200, 0x0201, 0x0202, 0x0203, 0x0205, 0x0206, 0x0207, 0x0208, 0x0209),
        *(0x0211, 0x0212, 0x0213, 0x0214, 0x02BC, 0x83BB, 0x8649, 0x8773, 0x935C),
    }
)
PIXEL_DIMENSIONS = (0xA002, 0xA003)


def carried_exif(image: "Image") -> tuple[bytes | None, int, tuple[str, ...]]:
    """Return the EXIF to write, the orientation still to be applied, and notes.

    Orientation, pixel dimensions and the thumbnail are left out: the samples are turned upright and enlarged,
    so all three would be wrong. So is whatever describes the layout of a TIFF.

    Args:
        image: The picture, loaded.
    """
    orientation: Any = 1
    try:
        exif = image.getexif()
        orientation = exif.get(ORIENTATION, 1)
        for tag in STRUCTURE & set(exif):
            del exif[tag]
        inner = exif.get_ifd(EXIF_IFD)
        for tag in PIXEL_DIMENSIONS:
            inner.pop(tag, None)
        if inner:
            exif[EXIF_IFD] = dict(inner)
        elif EXIF_IFD in exif:
            del exif[EXIF_IFD]
        content = exif.tobytes() if len(exif) else None
    except Exception:
        # Cameras and editors write EXIF of every degree of brokenness; the picture is not lost for it.
        return None, _known(orientation), ("its EXIF is unreadable and was left out",)
    return content, _known(orientation), ()


def _known(orientation: Any) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
