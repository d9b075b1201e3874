"""Files that appear whole or not at all, and what a killed process left of them."""

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

__all__ = [
    "CHECKPOINTS",
    "PARTS",
    "PICTURES",
    "PLANS",
    "is_owned",
    "locked",
    "owned_file",
    "part_of",
    "picture_files",
    "replaced_atomically",
    "sha256_of",
    "sweep",
    "temporary_folder",
]

# The last two are those of ncnn, a net in two files; a .bin may be PyTorch's as well.
CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors", ".param", ".bin")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
PLANS = (".plan", ".engine", ".trt")
PARTS = ("trunk", "tail")

# The longest suffix by which anything here chooses a format is ".safetensors".
LONGEST_SUFFIX = 16

# A temporary belongs to the process that holds the lock on it, or on this file in it. The system releases the locks
# of a process that dies, however it dies; a process number would go to another one.
_LOCK = "owner"
_OURS = re.compile(rf"\.esrgan-[0-9a-f]{{12}}(\..{{1,{LONGEST_SUFFIX - 1}}})?")


def part_of(whole: Path, part: str) -> Path:
    """Return where a part of a graph, one of `PARTS`, lies: ``model.trunk.onnx`` beside ``model.onnx``."""
    return whole.with_name(f"{whole.stem}.{part}{whole.suffix}")


@contextlib.contextmanager
def replaced_atomically(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside the target; it takes the target's name only if the block ends well.

    The temporary name keeps the target's suffix, because writers choose a format by it, and is short. On an
    exception, a full disk among them, the temporary file is removed and whatever stood at the target stays
    untouched. What a killed process left in the target's folder is removed, once in this process.

    Args:
        target: The path to write in the end. Its folder must exist.

    Raises:
        OSError: The folder cannot be written, or the target is there and is no file.
    """
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "A pipe, a device or a folder is not replaced by a file", str(target))
    # Not the target's own name with more: that one may be as long as the file system allows.
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= LONGEST_SUFFIX else ""
    _swept_once(target.parent)
    temporary, owner = _held_file(target.parent, suffix)
    with owner:
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder somewhere below another one, and remove it at the end, with whatever it then holds.

    It may be renamed. What killed processes left in ``parent`` is removed first.

    Raises:
        OSError: It cannot be made.
    """
    sweep(parent)
    outer, owner = _held_folder(parent)
    with owner:
        try:
            inner = outer / "made"
            inner.mkdir()
            yield inner
        finally:
            shutil.rmtree(outer, ignore_errors=True)


@contextlib.contextmanager
def owned_file(folder: Path) -> Iterator[Path]:
    """Yield a new empty file that is this process' until the block ends, when it is removed; see `is_owned`.

    Raises:
        OSError: The folder cannot be written.
    """
    path, owner = _held_file(folder, "")
    with owner:
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def is_owned(path: Path) -> bool:
    """Return whether a file of `owned_file` is still some living process', on this machine or another.

    Where that cannot be told it is taken to be.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not _lock(descriptor, wait=False)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is made where it is not there; others wait, in any process.

    The file stays, and the system releases the lock of a process that dies.

    Raises:
        OSError: The file cannot be made.
    """
    import filelock

    with filelock.FileLock(path):
        yield


def picture_files(folder: Path, *, deep: bool = False) -> list[Path]:
    """Return the picture files of a folder in order of their paths, with those of the folders in it where ``deep``.

    Raises:
        OSError: The folder cannot be read.
    """
    found = folder.rglob("*") if deep else folder.iterdir()
    # A pipe would be waited for.
    return sorted(path for path in found if path.suffix.lower() in PICTURES and path.is_file())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _held_file(folder: Path, suffix: str) -> tuple[Path, AbstractContextManager[object]]:
    while True:
        path = folder / f".esrgan-{secrets.token_hex(6)}{suffix}"
        if owner := _hold(path):
            return path, owner


def _held_folder(folder: Path) -> tuple[Path, AbstractContextManager[object]]:
    while True:
        path = folder / f".esrgan-{secrets.token_hex(6)}"
        path.mkdir()
        # A sweep may come between the two, and is then about to remove the folder.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            if owner := _hold(path / _LOCK):
                return path, owner


def _hold(path: Path) -> AbstractContextManager[object] | None:
    """Make a file and lock it until the context ends; None where a sweep came between the two."""
    # The mode that open() gives, which the system narrows by the umask: to ask for the umask is to set it for every
    # thread of the process.
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o666)
    file = os.fdopen(descriptor, "rb")
    if os.name == "nt":
        # There are no such locks, and what is open cannot be renamed.
        file.close()
        return contextlib.nullcontext()
    _lock(descriptor, wait=True)
    if path.exists():
        return file
    file.close()
    return None


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Return whether it is locked now: not where another one holds it, or where the file system has no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


@functools.lru_cache(maxsize=256)
def _swept_once(folder: Path) -> None:
    # A folder of a hundred thousand pictures is not listed for each of them.
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove the temporaries in a folder whose owner is dead; what cannot be looked at stays."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        _remove_unheld(Path(entry) / _LOCK, Path(entry))
                    elif entry.is_file(follow_symlinks=False):
                        _remove_unheld(Path(entry), Path(entry))


def _remove_unheld(lock: Path, path: Path) -> None:
    # A folder whose owner died before it had made its lock has none.
    make = os.O_CREAT if lock != path else 0
    descriptor = os.open(
        lock, os.O_RDWR | make | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0), 0o666
    )
    try:
        if _lock(descriptor, wait=False):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(descriptor)
