"""Where large outputs go: memory that is there, or a file that appears whole or not at all."""

import contextlib
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy.runtime.device import processor_memory

__all__ = ["empty_output", "open_output", "release_rows"]

Array = npt.NDArray[Any]


def empty_output(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return an array in memory for an output, its samples undefined.

    Args:
        shape: ``(H, W)`` or ``(H, W, C)``.
        dtype: Of its samples.

    Raises:
        InferenceError: It has no pixel, or takes more memory than there is.
    """
    size = _size_of(shape, dtype)
    free = processor_memory().free_bytes
    # Asked first: the system hands out more than it has, and ends the process when the pages are written.
    if size <= free:
        try:
            return np.empty(shape, dtype)
        except (MemoryError, ValueError):
            pass
    raise InferenceError(
        f"the output of {shape[1]}x{shape[0]} pixels takes {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
        "free; pass out= an array from esrgan_deploy.runtime.open_output, which lies in a file, or cut the picture"
    )


@contextlib.contextmanager
def open_output(path: str | Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Iterator[Array]:
    """Yield an array that lies in a file, for outputs that memory does not hold.

    The file takes its name when the block ends well; on an exception it is removed, and what stood there stays.

    Args:
        path: Ends in ``.npy`` for NumPy's format (``np.load(path, mmap_mode="r")`` reads it back); with every other
            suffix the file holds the bare samples, row by row.
        shape: ``(H, W)`` or ``(H, W, C)``.
        dtype: Of its samples.

    Raises:
        InferenceError: It has no pixel, or the disk does not hold it.
        OSError: The folder cannot be written.
    """
    path = Path(path)
    size = _size_of(shape, dtype)
    with replaced_atomically(path) as temporary:
        out = _mapped(temporary, shape, np.dtype(dtype), size)
        yield out
        out.flush()


def release_rows(array: Array, start: int, stop: int) -> bool:
    """Let go of the memory that finished rows of a file's array take; they stay in the file.

    Without this the pages of a file's array count as the process's own until something else needs the memory.
    The rows can be read and written as before: they come back from the file.

    Args:
        array: A `numpy.memmap`, such as `open_output` yields, or a view of one. Of anything else nothing happens.
        start: First of the rows.
        stop: The row after the last.

    Returns:
        Whether pages were released.
    """
    found = _mapping(array)
    rows = array[start:stop]
    if found is None or rows.size == 0 or not rows.flags.c_contiguous:
        return False
    mapping, address = found
    # Only pages that hold nothing but these rows, and rows before them: those after are about to be written.
    page = mmap.PAGESIZE
    first = (rows.ctypes.data - address) // page * page
    last = (rows.ctypes.data - address + rows.nbytes) // page * page
    if last <= first:
        return False
    mapping.madvise(mmap.MADV_DONTNEED, first, last - first)
    return True


def _mapping(array: Array) -> tuple[mmap.mmap, int] | None:
    base: Any = array
    shared = False
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            # A copy-on-write mapping would lose what was written: nothing of it is in the file.
            if base.mode == "c":
                return None
            shared = True
        base = base.base
    if not shared or not isinstance(base, mmap.mmap):
        return None
    return base, np.frombuffer(base, np.uint8).ctypes.data


def _size_of(shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
    if len(shape) < 2 or min(shape) < 1:
        raise InferenceError(
            f"the output would be of shape {shape}, which has no pixel; give a larger picture"
        )
    return math.prod(shape) * np.dtype(dtype).itemsize


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> "np.memmap[Any, Any]":
    try:
        out: np.memmap[Any, Any]
        if path.suffix == ".npy":
            out = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        else:
            out = np.memmap(path, dtype=dtype, mode="w+", shape=shape)
        # A page of a hole that the full disk cannot hold ends the process with SIGBUS when it is written; a
        # reserved one cannot fail.
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except (OSError, ValueError, OverflowError) as error:
        raise InferenceError(
            f"the output of {shape[1]}x{shape[0]} pixels takes {size / 2**30:.1f} GiB, which {path.parent} does not "
            f"hold ({error}); free some space or write elsewhere"
        ) from error
    return out
