"""What the commands share: how they read their options, how they fail, and how they speak."""

import argparse
import contextlib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from esrgan_deploy._errors import EsrganDeployError

__all__ = [
    "STREAMS",
    "THREADS",
    "OptionError",
    "Parser",
    "at_least",
    "between",
    "note",
    "one_line",
    "one_line_errors",
    "output_file",
    "say",
    "show",
]


THREADS = max(64, 2 * (os.cpu_count() or 1))
"""The most threads of a library: a thousand on two cores take a minute to do nothing."""

STREAMS = 256
"""More batches in flight than help; each has buffers of its own."""

_ADVICE = {
    errno.ENOSPC: ". Free some space or write elsewhere; nothing was left half-written",
    errno.EFBIG: ". Raise the limit on file sizes (ulimit -f) or write elsewhere; nothing was left half-written",
    errno.EACCES: ". Write to a folder that is yours",
    errno.EROFS: ". Write to a folder that can be written",
    errno.ENAMETOOLONG: ". Give a shorter name",
}


class OptionError(ValueError):
    """An option has a value that cannot be used, which is known only behind the parser: exit status 2."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        self.exit(2, f"{self.prog}: {one_line(message)}. Run: {self.prog} --help\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse, after refusing what no path can hold: a shell cannot type it, a program that calls can."""
        given = sys.argv[1:] if args is None else list(args)
        if any("\0" in text for text in given):
            self.error("an argument holds a NUL character")
        for text in given:
            # argparse would hand on an empty list as the value.
            if text.startswith("-") and text.endswith("=--"):
                self.error(f"{text}: '--' ends the options and is no value")
        return super().parse_known_args(given, namespace)


def peaks(text: str) -> int | tuple[int, int]:
    """Read ``255``, or ``1:255`` of an input and an output, as the `type` of an option."""
    whites = tuple(int(part) for part in text.split(":"))
    return (whites[0], whites[1]) if len(whites) == 2 else int(text)


def at_least(least: int, *, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Return a `type` for an option that takes whole numbers from `least` to `most`."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{value} is under {least}" if value < least else f"{value} is over {most}"
            )
        return value

    number.__name__ = "number"
    return number


def between(least: float, most: float) -> Callable[[str], float]:
    """Return a `type` for an option that takes a number from `least` to `most`."""

    def number(text: str) -> float:
        value = float(text)
        # A NaN is within nothing.
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least:g} to {most:g}")
        return value

    return number


def output_file(text: str) -> Path:
    """Be the `type` of an option that names a file to write: what cannot be one is refused before the work."""
    path, why = Path(text), ""
    parent = path.absolute().parent
    try:
        if not parent.is_dir():
            why = f"there is no folder {parent}"
        else:
            path.lstat()
            why = "" if path.is_file() else "that is there and is no file that can be replaced"
    except FileNotFoundError:
        why = "" if os.access(parent, os.W_OK) else f"the folder {parent} cannot be written"
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise argparse.ArgumentTypeError(f"{text}: {why}; give another name")
    return path


def one_line(text: object) -> str:
    """Fold a text onto one line."""
    return " ".join(str(text).split())


def say(line: str) -> None:
    """Print how a job stands, on stdout. A job that did its work never fails because nobody can read of it.

    A reader that went away (``| head``) is passed over; of a stream that cannot be written a note tells once.
    """
    try:
        print(line, flush=True)
    except (OSError, ValueError) as error:
        _silence()
        if not isinstance(error, BrokenPipeError):
            note(f"note: standard output cannot be written ({_reason(error)}); the work goes on")


def show(text: str) -> None:
    """Print what the command was run for, on stdout: not to have it is a failure, unless the reader went away.

    Raises:
        OSError: It cannot be written.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _silence()
    except (OSError, ValueError) as error:
        _silence()
        raise OSError(getattr(error, "errno", None), _reason(error), "standard output") from error


def note(line: str) -> None:
    """Print a line on stderr, where there is one."""
    # Without the first test it would go to stdout.
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def one_line_errors(command: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a ``main``: an error of this package becomes one line on stderr and exit status 1.

    A full or unwritable disk is the user's to mend as well, and reads the same. A usage error is exit status 2,
    Ctrl-C is 130, a closed pipe is quiet, and anything else is a bug and keeps its traceback. Characters that
    stdout cannot show are replaced.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def wrapped(*args: object, **kwargs: object) -> int:
            _open_standard_streams()
            try:
                try:
                    return main(*args, **kwargs)
                finally:
                    # --help and lines that were not flushed: at the interpreter's exit it would be too late.
                    _flush()
            except EsrganDeployError as error:
                note(f"{command}: {one_line(error)}")
                return 1
            except OptionError as error:
                note(f"{command}: {one_line(error)}. Run: {command} --help")
                return 2
            except KeyboardInterrupt:
                note(f"{command}: stopped by Ctrl-C; nothing was left half-written")
                return 130
            except BrokenPipeError:
                _silence()
                return 1
            except MemoryError as error:
                reason = one_line(error) or "no reason given"
                note(f"{command}: memory ran out ({reason}). Use a smaller size or tile")
                return 1
            except OSError as error:
                where = f": {error.filename}" if error.filename else ""
                advice = _ADVICE.get(error.errno or 0, "")
                note(f"{command}: {_reason(error)}{where}{advice}")
                return 1

        return wrapped

    return decorate


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def _open_standard_streams() -> None:
    # A file that is opened where stdout was closed (`>&-`) would get its number, and whatever a library prints.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence()
    except (OSError, ValueError) as error:
        _silence()
        raise OSError(getattr(error, "errno", None), _reason(error), "standard output") from error


def _silence() -> None:
    # What is left in the buffer would make the interpreter print a second error at exit. A stream that has no
    # number has no such end.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
