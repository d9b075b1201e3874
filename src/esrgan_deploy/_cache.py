"""What can be had again, kept on disk between processes and never trusted."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from esrgan_deploy._files import replaced_atomically

__all__ = ["KeyedFile", "cache_folder"]

_MAGIC = b"esrgan-deploy cache 1\n"
_HEAD = len(_MAGIC) + hashlib.sha256().digest_size


def cache_folder(kind: str = "") -> Path:
    """Return the folder of what can be had again: downloaded checkpoints, compiled kernels, searches.

    ``$ESRGAN_DEPLOY_CACHE``, else ``esrgan-deploy`` where the system keeps a user's caches: on Linux in
    ``$XDG_CACHE_HOME``, else in ``~/.cache``.

    Args:
        kind: A folder in it.
    """
    import platformdirs

    own = os.environ.get("ESRGAN_DEPLOY_CACHE")
    return (
        Path(own).expanduser() if own else platformdirs.user_cache_path("esrgan-deploy", appauthor=False)
    ) / kind


class KeyedFile:
    """Bytes that belong to a key, in a file of their own behind a checksum.

    TensorRT parses machine code out of such bytes, and aborts the process on one that is wrong: what is damaged or
    belongs to another key is a miss, and no error.

    Args:
        folder: Where the file lies; made when it is saved.
        kind: What the name begins with.
        key: Everything that the bytes depend on.
        warn: Receives a sentence for every reason to go on without the file.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        key: Mapping[str, object],
        *,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._key = json.dumps(key, sort_keys=True).encode() + b"\n"
        self._kind, self.warn = kind, warn
        self.path = folder / f"{kind}-{hashlib.sha256(self._key).hexdigest()[:16]}.cache"

    def load(self) -> bytes:
        """Return the bytes on disk; empty where there are none that can be trusted."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self.warn(
                f"the {self._kind} cache {self.path} cannot be read ({error.strerror}); going on without"
            )
            return b""
        digest, body = content[len(_MAGIC) : _HEAD], content[_HEAD:]
        if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            self.warn(f"the {self._kind} cache {self.path} is damaged; going on without it and replacing it")
            return b""
        if not body.startswith(self._key):
            self.warn(f"the {self._kind} cache {self.path} is of another machine or version; replacing it")
            return b""
        return body[len(self._key) :]

    def save(self, content: bytes) -> bool:
        """Write the bytes, whole or not at all; False where the folder cannot be written."""
        body = self._key + content
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_atomically(self.path) as temporary:
                temporary.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)
        except OSError as error:
            reason = error.strerror or error
            self.warn(f"the {self._kind} cache {self.path} cannot be written ({reason}); it is not kept")
            return False
        return True
