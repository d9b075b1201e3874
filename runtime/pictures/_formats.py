"""What the picture formats can hold."""

import dataclasses
from pathlib import Path

from esrgan_deploy._errors import MediaError

__all__ = [
    "BMP",
    "INPUT_FORMATS",
    "JPEG",
    "MAX_PIXELS",
    "OUTPUT_FORMATS",
    "PNG",
    "TIFF",
    "WEBP",
    "Format",
    "format_of",
]

# Where Pillow itself refuses, as of version 13.
MAX_PIXELS = 178_956_970

INPUT_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One file format.

    Attributes:
        name: As people write it.
        longest_side: Pixels.
        alpha: Whether it holds transparency.
        gray: Whether it holds gray other than as RGB.
        deep: Whether it holds 16 bits a channel.
        metadata: Whether it holds an ICC profile and EXIF.
        longest_exif: Bytes.
        largest: Bytes of samples.
    """

    name: str
    longest_side: int
    alpha: bool = True
    gray: bool = True
    deep: bool = False
    metadata: bool = True
    longest_exif: int = 2**31 - 1
    largest: int = 2**63


PNG = Format(name="PNG", longest_side=2**31 - 1, deep=True)
JPEG = Format(name="JPEG", longest_side=65500, alpha=False, longest_exif=65533)
WEBP = Format(name="WebP", longest_side=16383, gray=False)
# Offsets in a TIFF have 32 bits; what is incompressible grows a little.
TIFF = Format(name="TIFF", longest_side=2**31 - 1, deep=True, largest=2**32 - 2**24)
BMP = Format(name="BMP", longest_side=32767, alpha=False, metadata=False)

OUTPUT_FORMATS = {
    ".png": PNG,
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".webp": WEBP,
    ".tif": TIFF,
    ".tiff": TIFF,
    ".bmp": BMP,
}


def format_of(path: Path) -> Format:
    """Return the format that a file is to be written in, by its suffix.

    Raises:
        MediaError: The suffix is of no known format.
    """
    kind = OUTPUT_FORMATS.get(path.suffix.lower())
    if kind is None:
        raise MediaError(
            f"{path} ends in {path.suffix or 'no suffix'}; the output ends in one of "
            f"{', '.join(OUTPUT_FORMATS)}"
        )
    return kind
