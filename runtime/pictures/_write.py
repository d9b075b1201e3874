"""Picture files out."""

import tempfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import MediaError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy._optional import require
from esrgan_deploy.runtime.pictures._formats import PNG, TIFF, Format, format_of
from esrgan_deploy.runtime.pictures._picture import Picture
from esrgan_deploy.runtime.pictures._png import write_png16
from esrgan_deploy.runtime.pictures._tiff import write_tiff

__all__ = ["check_fits", "check_output", "write_picture"]


def check_output(path: str | Path, *, source: str | Path | None = None, force: bool = False) -> None:
    """Refuse an output path before any work is done for it.

    Args:
        path: Where a picture is to be written.
        source: The file that it is made from, which is never written over.
        force: Whether an existing file may be replaced.

    Raises:
        MediaError: The suffix is of no known format, the folder is missing or not writable, the file exists
            and ``force`` is off, or it is the source itself.
    """
    path = Path(path)
    format_of(path)
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise MediaError(
            f"{path} cannot be the name of a file here ({error.strerror}); give another with -o"
        ) from error
    if path.is_dir():
        raise MediaError(f"{path} is a folder; give the name of a picture file in it")
    if source is not None and path.exists() and path.samefile(source):
        raise MediaError(f"{path} is the input, which is never written over; give another name with -o")
    if path.exists() and not path.is_file():
        raise MediaError(
            f"{path} is a pipe or a device, which no picture replaces; give another name with -o"
        )
    if path.exists() and not force:
        raise MediaError(f"{path} exists already; give another name with -o, or --force to replace it")
    try:
        # Asking for permission bits is wrong for root and for read-only file systems: try it.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise MediaError(
            f"no picture can be written into {path.parent} ({error.strerror}); give a folder that exists and "
            "is writable with -o"
        ) from error


def check_fits(path: str | Path, picture: Picture, height: int, width: int) -> tuple[str, ...]:
    """Refuse a picture that the output's format cannot hold, and tell what it holds less of.

    Args:
        path: Where it is to be written.
        picture: The picture, or the one that it is made from.
        height: Rows that will be written.
        width: Columns that will be written.

    Returns:
        What will be left out, one sentence each.

    Raises:
        MediaError: It has alpha or a size that the format does not know.
    """
    kind = format_of(Path(path))
    if picture.has_alpha and not kind.alpha:
        raise MediaError(
            f"{path} cannot hold transparency, as {kind.name} has none; write .png, .webp or .tif"
        )
    if max(height, width) > kind.longest_side:
        raise MediaError(
            f"{path} would be {width}x{height} pixels and a {kind.name} side ends at {kind.longest_side}; "
            "write .png or .tif"
        )
    size = height * width * picture.channels * picture.pixels.itemsize
    if size > kind.largest:
        raise MediaError(
            f"{path} would hold {size / 2**30:.1f} GiB of samples and a {kind.name} ends at "
            f"{kind.largest / 2**30:.1f}; write .png"
        )
    notes = []
    if picture.pixels.dtype == np.uint16 and not kind.deep:
        notes.append(f"{kind.name} holds 8 bits a channel: 16 were rounded to 8, .png and .tif keep them")
    if not kind.metadata and (picture.icc or picture.exif):
        notes.append(f"{kind.name} holds no ICC profile and no EXIF: they were left out")
    elif picture.exif and len(picture.exif) > kind.longest_exif:
        notes.append(f"its EXIF of {len(picture.exif)} bytes is too long for {kind.name} and was left out")
    elif picture.icc and _profile(picture, kind) is None:
        notes.append(f"{kind.name} has no gray: the gray ICC profile was left out")
    return tuple(notes)


def write_picture(path: str | Path, picture: Picture, *, force: bool = False) -> tuple[str, ...]:
    """Write a picture, whole or not at all, in the format of the suffix.

    PNG and TIFF keep 16 bits a channel; the others get 8, rounded. JPEG is written at quality
    95 without chroma subsampling, WebP without loss, TIFF deflated.

    Returns:
        What was left out, one sentence each.

    Raises:
        MediaError: See `check_output` and `check_fits`; or the disk is full.
        MissingDependencyError: Pillow is not installed.
    """
    path = Path(path)
    check_output(path, force=force)
    height, width = picture.pixels.shape[:2]
    notes = check_fits(path, picture, height, width)
    kind = format_of(path)
    try:
        with replaced_atomically(path) as temporary:
            _write(temporary, picture, kind)
    except OSError as error:
        raise MediaError(
            f"{path} cannot be written ({error.strerror or one_line(error)}); nothing was left there"
        ) from error
    return notes


def _write(path: Path, picture: Picture, kind: Format) -> None:
    if kind is TIFF:
        write_tiff(path, picture.pixels, icc=picture.icc, exif=picture.exif, dpi=picture.dpi)
    elif kind is PNG and picture.pixels.dtype == np.uint16:
        _write_deep_png(path, picture)
    else:
        _write_with_pillow(path, picture, kind)


def _write_deep_png(path: Path, picture: Picture) -> None:
    chunks = list(picture.png_colour)
    if picture.icc:
        # An sRGB chunk and a profile exclude each other (PNG, chapter 11.3.2.3).
        chunks = [chunk for chunk in chunks if chunk[0] != b"sRGB"]
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)))
    if picture.dpi:
        metre = b"".join(round(value / 0.0254).to_bytes(4, "big") for value in picture.dpi)
        chunks.append((b"pHYs", metre + b"\x01"))
    if picture.exif:
        chunks.append((b"eXIf", picture.exif.removeprefix(b"Exif\0\0")))
    write_png16(path, picture.pixels, chunks)


def _write_with_pillow(path: Path, picture: Picture, kind: Format) -> None:
    image_module = require("PIL.Image", extra="media")
    pixels = picture.pixels
    if pixels.dtype == np.uint16:
        # 257 values to one: v / 257 rounded, without a float copy of the picture.
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    image = image_module.fromarray(pixels)
    if picture.channels <= 2 and not kind.gray:
        image = image.convert("RGBA" if picture.has_alpha else "RGB")
    with path.open("wb") as file:
        image.save(_Plain(file), format=kind.name, **_options(picture, kind))


class _Plain:
    """A file of which Pillow cannot see the descriptor.

    Given one, its encoders write past Python and take a short write, which is what a full disk gives first, for
    a whole one: a truncated picture and no error.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write
        self.flush = file.flush


def _options(picture: Picture, kind: Format) -> dict[str, Any]:
    options: dict[str, Any] = dict(ENCODER[kind.name])
    if kind.metadata:
        exif = picture.exif
        options["icc_profile"] = _profile(picture, kind)
        if exif and len(exif) <= kind.longest_exif:
            options["exif"] = exif
    if picture.dpi:
        options["dpi"] = picture.dpi
    if kind is PNG and picture.png_colour:
        info = require("PIL.PngImagePlugin", extra="media").PngInfo()
        for name, data in picture.png_colour:
            info.add(name, data)
        options["pnginfo"] = info
    return options


ENCODER: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WebP": {"lossless": True, "exact": True},
    "BMP": {},
}


def _profile(picture: Picture, kind: Format) -> bytes | None:
    # Bytes 16 to 20 of a profile name the colour space that it describes (ICC.1, chapter 7.2.6).
    if picture.icc and picture.channels <= 2 and not kind.gray and picture.icc[16:20] == b"GRAY":
        return None
    return picture.icc
