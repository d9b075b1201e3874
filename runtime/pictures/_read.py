"""Picture files in."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import MediaError
from esrgan_deploy._optional import require
from esrgan_deploy.runtime.pictures._deep_colour import deep_samples
from esrgan_deploy.runtime.pictures._formats import INPUT_FORMATS, MAX_PIXELS
from esrgan_deploy.runtime.pictures._picture import Picture, carried_exif
from esrgan_deploy.runtime.pictures._png import SIGNATURE, PngFacts, png_facts

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_picture"]

Array = npt.NDArray[Any]

PLAIN = ("L", "LA", "RGB", "RGBA")
GRAY16 = ("I;16", "I;16L", "I;16B")
CONVERTED = {"1": "L", "RGBX": "RGB", "YCbCr": "RGB", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}

_pillow_limit = threading.Lock()


def read_picture(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF or BMP.

    Gray stays gray and alpha stays; palettes, one bit and YCbCr become gray or RGB; 16 bits a channel stay
    16, in colour as well. The EXIF orientation is applied to the samples and taken out of the EXIF.

    Args:
        path: The file.
        max_pixels: Refuse a picture of more; a small file can claim to be of any size.

    Raises:
        MediaError: The file is no picture of a known kind, is damaged, is animated, or has more pixels.
        MissingDependencyError: Pillow is not installed.
    """
    path = Path(path)
    facts = png_facts(path) if _first_bytes(path) == SIGNATURE else None
    image_module = require("PIL.Image", extra="media")
    # What Pillow warns of (odd EXIF, large sizes, palettes) is settled below. A filter for its modules alone, which
    # stays: `catch_warnings` changes the process, and where two threads leave it in another order than they entered
    # it, every later warning of the program is silenced.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with (
            _raised_limit(image_module, max_pixels),
            image_module.open(path, formats=INPUT_FORMATS) as image,
        ):
            return _picture(image, path, facts, max_pixels)
    except MediaError:
        raise
    except image_module.UnidentifiedImageError as error:
        raise MediaError(
            f"{path} is not a picture that can be read: PNG, JPEG, WebP, TIFF and BMP can, if undamaged"
        ) from error
    except image_module.DecompressionBombError as error:
        raise MediaError(f"{path} is refused: {one_line(error)} Raise it with --max-pixels") from error
    except MemoryError as error:
        raise MediaError(f"{path} does not fit into memory; cut it") from error
    except Exception as error:
        # Decoders of damaged files raise whatever their arithmetic runs into.
        raise MediaError(
            f"{path} is damaged or of an odd variant ({one_line(error)[:200]}); make or fetch it again"
        ) from error


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise MediaError(f"{path} is a folder; give a picture file")
    if not path.exists():
        hint = "; a picture is read from a file, not from standard input" if str(path) == "-" else ""
        raise MediaError(f"there is no file {path}{hint}")
    # Before it is opened: opening a pipe waits for someone to write into it.
    if not path.is_file():
        raise MediaError(f"{path} is a pipe or a device and no regular file; save it to a file first")
    try:
        if path.stat().st_size == 0:
            raise MediaError(f"{path} is empty (0 bytes); make or fetch it again")
        with path.open("rb") as file:
            return file.read(len(SIGNATURE))
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _raised_limit(image_module: Any, max_pixels: int) -> Iterator[None]:
    # Pillow keeps its limit in a global: it is changed only where a caller asks for more, and put back.
    if max_pixels <= MAX_PIXELS:
        yield
        return
    with _pillow_limit:
        before = image_module.MAX_IMAGE_PIXELS
        image_module.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            image_module.MAX_IMAGE_PIXELS = before


def _picture(image: "Image", path: Path, facts: PngFacts | None, max_pixels: int) -> Picture:
    width, height = image.size
    if width < 1 or height < 1:
        raise MediaError(f"{path} says that it is {width}x{height} pixels; it needs at least 1x1")
    if width * height > max_pixels:
        raise MediaError(
            f"{path} is {width}x{height} = {width * height} pixels, over the limit of {max_pixels}; "
            f"if it is meant to be that large, give --max-pixels {width * height}"
        )
    frames = getattr(image, "n_frames", 1)
    # MPO is how telephones store a JPEG with its preview or depth map; the first picture is the photograph.
    if frames > 1 and image.format != "MPO":
        raise MediaError(
            f"{path} holds {frames} pictures; one is wanted. Split it first, or make a film of it"
        )
    pixels = _samples(image, path, facts)
    exif, orientation, notes = carried_exif(image)
    dpi = image.info.get("dpi")
    if dpi and orientation >= 5:
        dpi = dpi[::-1]
    return Picture(
        pixels=np.ascontiguousarray(_upright(pixels, orientation)),
        icc=image.info.get("icc_profile") or None,
        exif=exif,
        dpi=(float(dpi[0]), float(dpi[1])) if dpi else None,
        png_colour=facts.colour if facts else (),
        notes=notes,
    )


def _samples(image: "Image", path: Path, facts: PngFacts | None) -> Array:
    deep = deep_samples(image, path)
    if deep is None:
        deep = _shallow_samples(image, path)
    if facts is not None and facts.transparent and facts.depth == 16:
        return _with_transparent_colour(deep, facts.transparent)
    return deep


def _shallow_samples(image: "Image", path: Path) -> Array:
    mode = image.mode
    if mode in GRAY16:
        return _gray16(image, path)
    image.load()
    if mode in ("1", "L") and "transparency" in image.info:
        image = image.convert("LA")
    elif mode == "RGB" and "transparency" in image.info:
        image = image.convert("RGBA")
    elif mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif mode in CONVERTED:
        image = image.convert(CONVERTED[mode])
    elif mode == "CMYK":
        raise MediaError(
            f"{path} is CMYK, whose colours depend on the press; convert it to RGB with its own profile first"
        )
    if image.mode not in PLAIN:
        raise MediaError(f"{path} holds samples of the kind {mode!r}; convert it to 8- or 16-bit gray or RGB")
    return np.asarray(image)


def _gray16(image: "Image", path: Path) -> Array:
    tags: Any = getattr(image, "tag_v2", {})
    bits, photometric = tags.get(258, (16,)), tags.get(262, 1)
    if bits[0] != 16:
        raise MediaError(f"{path} holds {bits[0]} bits a sample; convert it to 16-bit gray")
    image.load()
    samples = np.asarray(image).astype(np.uint16)
    # Pillow honours "0 is white" for up to 8 bits only.
    return 65535 - samples if photometric == 0 else samples


def _with_transparent_colour(samples: Array, colour: tuple[int, ...]) -> Array:
    cube = samples[:, :, None] if samples.ndim == 2 else samples
    if cube.shape[2] != len(colour):
        return samples
    seen = (cube != np.array(colour, samples.dtype)).any(axis=2)
    return np.dstack([cube, np.where(seen, 65535, 0).astype(samples.dtype)])


def _upright(pixels: Array, orientation: int) -> Array:
    # EXIF 2.32, tag 0x0112: where row 0 and column 0 of the file lie in the picture.
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
