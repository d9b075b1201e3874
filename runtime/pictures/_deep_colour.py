"""Colour of 16 bits a channel, which Pillow decodes and then cuts down to 8."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import MediaError
from esrgan_deploy._optional import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["deep_samples"]

Array = npt.NDArray[Any]

# Pillow's unpackers keep the byte that is the high one in the order they are told. Told the other order, the
# same decoder keeps the low byte. N is the machine's own order.
OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
BITS_PER_SAMPLE, PLANAR = 258, 284


def deep_samples(image: "Image", path: Path) -> Array | None:
    """Decode a picture that holds several channels of 16 bits.

    Args:
        image: The picture, open and not loaded; it is loaded here.
        path: Where it came from; it is read a second time for the low bytes.

    Returns:
        ``(H, W, C)`` uint16, or None where the picture is not of that kind.

    Raises:
        MediaError: It is of that kind, in a layout that cannot be read.
    """
    if not image.mode.startswith(("RGB", "CMYK")) or not _is_deep(image):
        return None
    raw = _raw_modes(image)
    base, _, order = next(iter(raw)).rpartition(";16") if len(raw) == 1 else ("", "", "")
    if base not in ("RGB", "RGBX", "RGBA", "LA") or order not in OTHER or _is_planar(image):
        raise MediaError(
            f"{path} holds 16 bits a channel in a layout that cannot be read ({', '.join(sorted(raw))}); "
            "convert it to a PNG, or to a TIFF of interleaved RGB or RGBA"
        )
    if base == "LA":
        # Two samples are four bytes: read as RGBA of 8 bits they come through whole.
        _decode_as(image, "RGBA")
        samples = np.asarray(image)
        return _joined(samples[:, :, 0::2], samples[:, :, 1::2])
    with require("PIL.Image", extra="media").open(path) as again:
        _decode_as(again, f"{base};16{OTHER[order]}")
        low = np.asarray(again)
    image.load()
    return _joined(np.asarray(image), low)


def _joined(high: Array, low: Array) -> Array:
    samples: Array = high.astype(np.uint16)
    samples <<= 8
    samples |= low
    return samples


def _is_deep(image: "Image") -> bool:
    tags: Any = getattr(image, "tag_v2", None)
    if tags is not None:
        return bool(max(tags.get(BITS_PER_SAMPLE, (1,))) > 8)
    return any(";16" in mode for mode in _raw_modes(image))


def _is_planar(image: "Image") -> bool:
    tags: Any = getattr(image, "tag_v2", {})
    return bool(tags.get(PLANAR, 1) == 2)


def _raw_modes(image: Any) -> set[str]:
    # A tile's arguments are the raw mode, or begin with it.
    return {tile[3] if isinstance(tile[3], str) else str(tile[3][0]) for tile in image.tile}


def _decode_as(image: Any, raw: str) -> None:
    image.tile = [
        tile._replace(args=raw if isinstance(tile[3], str) else (raw, *tile[3][1:])) for tile in image.tile
    ]
    image.load()
