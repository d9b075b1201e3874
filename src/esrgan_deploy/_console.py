"""What the commands share: how they fail, and how they speak."""

import contextlib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from esrgan_deploy._errors import EsrganDeployError

__all__ = [
    "STREAMS",
    "THREADS",
    "OptionError",
    "aligned",
    "note",
    "one_line",
    "one_line_errors",
    "progress",
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
    with _needed():
        print(text, flush=True)


def note(line: str) -> None:
    """Print a line on stderr, where there is one."""
    # Without the first test it would go to stdout.
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(noun: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what takes how many are done and how many there are, and moves a bar; None where stderr is no terminal.

    Args:
        noun: What is counted.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    counted = f"{noun} {{task.completed}} of {{task.total}},"
    columns = (TaskProgressColumn(), BarColumn(), counted, TimeRemainingColumn(), "left")
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, whose first row is its head.

    Where stdout is a terminal, a table that is wider folds within its columns and not across them.
    """
    if sys.stdout is None or not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    from rich.console import Console
    from rich.table import Column, Table

    head = [Column(name, overflow="fold") for name in rows[0]]
    table = Table(*head, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for row in rows[1:]:
        table.add_row(*row)
    console = Console(markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()


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
                    if sys.stdout is not None:
                        with _needed():
                            sys.stdout.flush()
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


@contextlib.contextmanager
def _needed() -> Iterator[None]:
    try:
        yield
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
