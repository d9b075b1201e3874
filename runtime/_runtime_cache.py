"""Kernels that TensorRT for RTX compiled for one card, kept between processes. Not run on a GPU so far.

A file per plan, version, card and driver, behind a checksum: TensorRT checks what it is given, but what came half
from a disk is not a thing to hand to a parser of machine code. Whatever does not match is a miss, and no error.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from esrgan_deploy._files import cache_folder, replaced_atomically

__all__ = ["CacheKey", "RuntimeCache"]

_MAGIC = b"esrgan-deploy runtime cache 1\n"
_DIGEST = hashlib.sha256().digest_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Everything that compiled kernels depend on.

    Attributes:
        plan: SHA-256 of the plan.
        version: Of TensorRT for RTX.
        gpu: Name of the card.
        driver: Newest CUDA version that the driver knows, ``13000`` for 13.0.
    """

    plan: str
    version: str
    gpu: str
    driver: int

    def to_bytes(self) -> bytes:
        """Return one line of JSON that equal keys share."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode() + b"\n"


class RuntimeCache:
    """The cache file of one key.

    Args:
        key: What the kernels depend on.
        folder: Where cache files lie; None for ``kernels`` in the cache folder of the package
            (``$ESRGAN_DEPLOY_CACHE``, else ``esrgan-deploy`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``).
    """

    def __init__(self, key: CacheKey, folder: Path | None = None) -> None:
        self._key = key.to_bytes()
        name = f"kernels-{hashlib.sha256(self._key).hexdigest()[:16]}.cache"
        self.path = (cache_folder() / "kernels" if folder is None else folder) / name

    def load(self) -> bytes:
        """Return the kernels on disk; empty where there are none that can be trusted."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return b""
        head = len(_MAGIC) + _DIGEST
        digest, body = content[len(_MAGIC) : head], content[head:]
        if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            return b""
        return body[len(self._key) :] if body.startswith(self._key) else b""

    def save(self, kernels: bytes) -> bool:
        """Write the kernels, whole or not at all; False where the folder cannot be written.

        That costs the next start some seconds and is no reason to fail.
        """
        body = self._key + kernels
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_atomically(self.path) as temporary:
                temporary.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)
        except OSError:
            return False
        return True
