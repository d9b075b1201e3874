"""Memory of a training on the CPU, kept between steps."""

import ctypes
import sys

__all__ = ["keep_heap"]

# malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_heap() -> None:
    """Tell glibc to keep what it was given, where it is glibc.

    It maps each large block by itself and gives it back when it is freed, so that every step of a training has the
    system clear the same activations page by page again: a tenth of the time and more. It holds for the process.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        # Another C library.
        return
    # The pad is address space only; with a small one glibc was seen to go on asking for more at every step.
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**30), (_M_TOP_PAD, 2**29)):
        mallopt(option, value)
