"""What the three commands share: how they fail, and how they show progress."""

import errno
import functools
import os
import sys
from collections.abc import Callable

from esrgan_deploy._errors import EsrganDeployError

__all__ = ["one_line", "one_line_errors"]


_ADVICE = {
    errno.ENOSPC: ". Free some space or write elsewhere; nothing was left half-written",
    errno.EFBIG: ". Raise the limit on file sizes (ulimit -f) or write elsewhere; nothing was left half-written",
    errno.EACCES: ". Write to a folder that is yours",
    errno.EROFS: ". Write to a folder that can be written",
}


def one_line(text: object) -> str:
    """Fold a text onto one line."""
    return " ".join(str(text).split())


def one_line_errors(command: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a ``main``: an error of this package becomes one line on stderr and exit status 1.

    A full or unwritable disk is the user's to mend as well, and reads the same. A usage error stays argparse's
    exit status 2, Ctrl-C is 130, a closed pipe is quiet, and anything else is a bug and keeps its traceback.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def wrapped(*args: object, **kwargs: object) -> int:
            try:
                return main(*args, **kwargs)
            except EsrganDeployError as error:
                print(f"{command}: {one_line(error)}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f"{command}: stopped by Ctrl-C; nothing was left half-written", file=sys.stderr)
                return 130
            except BrokenPipeError:
                # The reader went away (`| head`): without this the interpreter prints a second error at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            except MemoryError as error:
                reason = one_line(error) or "no reason given"
                print(f"{command}: memory ran out ({reason}). Use a smaller size or tile", file=sys.stderr)
                return 1
            except OSError as error:
                where = f": {error.filename}" if error.filename else ""
                reason = error.strerror or one_line(error)
                advice = _ADVICE.get(error.errno or 0, "")
                print(f"{command}: {reason}{where}{advice}", file=sys.stderr)
                return 1

        return wrapped

    return decorate
