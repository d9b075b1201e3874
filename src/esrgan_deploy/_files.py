"""Files that appear whole or not at all."""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cache_folder", "locked", "replaced_atomically", "sha256_of"]

# The longest suffix by which anything here chooses a format is ".safetensors".
LONGEST_SUFFIX = 16


@contextlib.contextmanager
def replaced_atomically(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside the target; it takes the target's name only if the block ends well.

    The temporary name keeps the target's suffix, because writers choose a format by it, and is short. On an
    exception, a full disk among them, the temporary file is removed and whatever stood at the target stays
    untouched.

    Args:
        target: The path to write in the end. Its folder must exist.

    Raises:
        OSError: The folder cannot be written, or the target is there and is no file.
    """
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "A pipe, a device or a folder is not replaced by a file", str(target))
    # Not the target's own name with more: that one may be as long as the file system allows.
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= LONGEST_SUFFIX else ""
    temporary = target.with_name(f".esrgan-{secrets.token_hex(6)}{suffix}")
    # The mode that open() gives, which the system narrows by the umask: to ask for the umask is to set it for every
    # thread of the process.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o666))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is made where it is not there; others wait, in any process.

    The file stays: removed, a process that waits for it and one that comes later would hold two different
    locks. The system releases the lock of a process that dies.

    Raises:
        OSError: The file cannot be made.
    """
    # Not on every system that can import this.
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Return the folder of what can be had again: downloaded checkpoints, compiled kernels.

    ``$ESRGAN_DEPLOY_CACHE``, else ``esrgan-deploy`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``.
    """
    own = os.environ.get("ESRGAN_DEPLOY_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has a relative path ignored.
    base = Path(shared) if Path(shared).is_absolute() else Path("~/.cache").expanduser()
    return base / "esrgan-deploy"
