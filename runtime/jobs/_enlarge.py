"""What is done for one item, by its kind."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import MediaError
from esrgan_deploy._files import sha256_of
from esrgan_deploy.runtime.jobs._inputs import JobItem
from esrgan_deploy.runtime.jobs._rows import Made, Stamp

if TYPE_CHECKING:
    from esrgan_deploy.runtime import Upscaler

__all__ = ["HANDLERS", "is_full", "reason_of", "size_of"]

# Of a disk, of a quota.
FULL = (errno.ENOSPC, errno.EDQUOT)


def enlarge_picture(item: JobItem, upscaler: "Upscaler", max_pixels: int) -> Made:
    """Read, enlarge and write a picture. An output that is there is replaced.

    Raises:
        MediaError: It cannot be read or written, or changed meanwhile; see `read_picture` and `write_picture`.
        InferenceError: The model failed.
        OSError: It cannot be read.
    """
    from esrgan_deploy.runtime.pictures import check_fits, check_output, read_picture, write_picture

    _make_folder(item.output.parent)
    check_output(item.output, source=item.source, force=True)
    if not item.source.is_file():
        # Nothing waits for what writes into a pipe.
        raise MediaError(f"{item.source} is no regular file, or not there any more")
    before = Stamp.of(item.source)
    picture = read_picture(item.source, max_pixels=max_pixels)
    digest = sha256_of(item.source)
    # Written to within the last tick of the file system's clock, it could change once more and look the same.
    if Stamp.of(item.source) != before:
        raise MediaError(
            f"{item.source} changed while it was read; wait until it is written and run this again"
        )
    height, width = picture.pixels.shape[:2]
    made_size = upscaler.plan(height, width).out_size
    notes = (*picture.notes, *check_fits(item.output, picture, *made_size))
    if upscaler.info.form == "uint8" and picture.pixels.dtype.itemsize > 1:
        notes = ("the model computes on 8 bits: use one of the float form to keep 16", *notes)
    enlarged = picture.with_pixels(upscaler.upscale(picture.pixels))
    write_picture(item.output, enlarged, force=True)
    return Made(
        stamp=before,
        source_sha256=digest,
        output_size=item.output.stat().st_size,
        output_sha256=sha256_of(item.output),
        size=(height, width),
        made_size=made_size,
        notes=notes,
    )


HANDLERS: dict[str, Callable[[JobItem, "Upscaler", int], Made]] = {"picture": enlarge_picture}


def size_of(path: Path) -> tuple[int, int]:
    """Return ``(height, width)`` as the head of a picture has it, before it is turned; (0, 0) where it has none."""
    import warnings

    try:
        import PIL.Image

        warnings.filterwarnings("ignore", module=r"PIL\.")
        if not path.is_file():
            return (0, 0)
        with PIL.Image.open(path) as image:
            return image.height, image.width
    except Exception:
        # What is wrong with it is told when it is read.
        return (0, 0)


def is_full(error: BaseException | None) -> bool:
    """Return whether an error comes of a full disk, on which whatever follows would fail as well."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(
            f"the folder {folder} cannot be made ({error.strerror}); give another with -o"
        ) from error


def reason_of(error: BaseException, source: Path) -> str:
    """Return why an item failed, without the name that is told beside it."""
    text = one_line(error)
    if isinstance(error, MemoryError):
        text = f"memory ran out ({text or 'no reason given'}); use a smaller tile"
    elif isinstance(error, OSError) and not isinstance(error, MediaError):
        text = error.strerror or text
    elif not isinstance(error, Exception) or type(error).__module__ == "builtins":
        text = f"{type(error).__name__}: {text}"
    return text.removeprefix(f"{source} ")
