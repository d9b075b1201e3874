"""TIFF where Pillow stops: 16 bits a channel in colour, and EXIF in a compressed file."""

import itertools
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from esrgan_deploy._optional import require

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

__all__ = ["write_tiff"]

# TIFF 6.0, and Adobe's technical notes for deflate (8) and the Exif and ICC tags.
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, CHANNELS, ROWS_PER_STRIP, STRIP_SIZES, PLANAR = 273, 277, 278, 279, 284
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, PREDICTOR, EXTRA, ICC = 282, 283, 296, 317, 338, 34675
HEADER = b"II*\0\x08\0\0\0"
LONG = 4
STRIP_BYTES = 1 << 20


def write_tiff(
    path: Path,
    pixels: npt.NDArray[Any],
    *,
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Write a deflated little-endian TIFF with horizontal prediction.

    Args:
        path: The file.
        pixels: ``(H, W)`` or ``(H, W, C)`` with C of 2 to 4, uint8 or uint16; under 4 GiB.
        icc: An ICC profile.
        exif: An EXIF block, whose tags become the file's own.
        dpi: Resolution in dots per inch, ``(x, y)``.

    Raises:
        OSError: The file cannot be written.
    """
    cube = pixels[:, :, None] if pixels.ndim == 2 else pixels
    height, width, channels = cube.shape
    rows = max(1, STRIP_BYTES // (width * channels * cube.itemsize))
    tops = range(0, height, rows)
    tags = _described(exif)
    tags[WIDTH], tags[LENGTH], tags[ROWS_PER_STRIP] = width, height, rows
    tags[BITS], tags[CHANNELS] = (cube.itemsize * 8,) * channels, channels
    tags[COMPRESSION], tags[PLANAR], tags[PREDICTOR] = 8, 1, 2
    tags[PHOTOMETRIC] = 1 if channels <= 2 else 2
    if channels in (2, 4):
        tags[EXTRA] = 2
    if icc:
        tags[ICC] = icc
    if dpi:
        tags[X_RESOLUTION], tags[Y_RESOLUTION], tags[RESOLUTION_UNIT] = dpi[0], dpi[1], 2
    # The directory stands in front and its length follows from the number of strips alone, so that room for
    # it can be left before their sizes are known.
    _set_strips(tags, [0] * len(tops))
    length = len(tags.tobytes(len(HEADER)))
    with path.open("wb") as file:
        file.seek(len(HEADER) + length)
        sizes = [file.write(_strip(cube[top : top + rows])) for top in tops]
        _set_strips(tags, sizes)
        file.seek(0)
        file.write(HEADER + tags.tobytes(len(HEADER)))


def _described(exif: bytes | None) -> "ImageFileDirectory_v2":
    tiff = require("PIL.TiffImagePlugin", extra="media")
    tags: ImageFileDirectory_v2 = tiff.ImageFileDirectory_v2(ifh=HEADER)
    if exif:
        block = require("PIL.Image", extra="media").Exif()
        block.load(exif)
        for tag in block:
            tags[tag] = block.get_ifd(tag) if tag in tiff.TiffTags.TAGS_V2_GROUPS else block[tag]
    return tags


def _set_strips(tags: "ImageFileDirectory_v2", sizes: list[int]) -> None:
    # Pillow counts the offsets from the end of the directory.
    offsets = [0, *itertools.accumulate(sizes)][:-1]
    for tag, values in ((STRIP_OFFSETS, offsets), (STRIP_SIZES, sizes)):
        tags[tag] = tuple(values)
        tags.tagtype[tag] = LONG


def _strip(rows: npt.NDArray[Any]) -> bytes:
    # Unsigned differences wrap around, as the predictor asks for.
    differences = rows.astype(rows.dtype.newbyteorder("<"))
    differences[:, 1:] -= rows[:, :-1]
    return zlib.compress(differences.tobytes(), 6)
