"""Pictures from standard input and to standard output, which are called ``-``."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from esrgan_deploy._errors import MediaError

__all__ = ["STREAM", "from_input", "to_output"]

STREAM = "-"


@contextlib.contextmanager
def from_input(source: Path) -> Iterator[Path]:
    """Yield a file with what standard input holds, where the source is ``-``; else the source.

    Decoders look at a picture more than once, which a pipe does not allow. Errors that name that file name standard
    input instead.

    Raises:
        MediaError: Standard input is closed, or what the block raises.
    """
    if str(source) != STREAM:
        yield source
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise MediaError(
            "standard input holds no picture; give one, such as: esrgan-upscale - -o big.png < photo.png"
        )
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "standard input"
        with kept.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield kept
        except MediaError as error:
            raise MediaError(str(error).replace(str(kept), "standard input")) from error


@contextlib.contextmanager
def to_output(output: str | None) -> Iterator[Path | None]:
    """Yield a file that is copied to standard output where the block ends well, where the output is ``-``.

    Raises:
        MediaError: Standard output is a terminal.
        OSError: It cannot be written.
    """
    if output != STREAM:
        yield None if output is None else Path(output)
        return
    if sys.stdout is None or sys.stdout.isatty():
        raise MediaError(
            "a terminal shows no PNG; give a file with -o, or: esrgan-upscale photo.png -o - > big.png"
        )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "standard output.png"
        yield made
        with made.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
