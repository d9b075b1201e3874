"""Kernel timings of full TensorRT, kept between builds.

TensorRT aborts the whole process when it is handed a timing cache with one wrong byte, and its own key leaves
out the workspace. So each cache lies in a file of its own behind a checksum and a key, and what does not
match is a cache miss. TensorRT for RTX times nothing while it builds and has no use for this.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esrgan_deploy._files import replaced_atomically

__all__ = ["CacheKey", "TimingCache"]

_MAGIC = b"esrgan-deploy timing cache 1\n"
_DIGEST = hashlib.sha256().digest_size

Warn = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Everything that a timing depends on.

    Attributes:
        gpu: Name of the GPU, as the driver gives it.
        compute_capability: ``"9.0"`` and so on.
        tensorrt: Version of TensorRT.
        driver: CUDA version of the driver, ``13000`` for 13.0.
        runtime: CUDA version of the runtime library.
        workspace: Bytes that a kernel could use; None for all.
        hardware_compatibility: The level that the plan was built for: it rules kernels out.
    """

    gpu: str
    compute_capability: str
    tensorrt: str
    driver: int
    runtime: int
    workspace: int | None
    hardware_compatibility: str

    def to_bytes(self) -> bytes:
        """Return one line of JSON that equal keys share."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode() + b"\n"


class TimingCache:
    """The cache file of one key in a folder.

    Args:
        folder: Where cache files lie; made when the first one is saved.
        key: What the timings depend on.
        warn: Receives a sentence for every reason to go on without the cache. None of them stops a build.
    """

    def __init__(self, folder: Path, key: CacheKey, *, warn: Warn) -> None:
        self._key = key.to_bytes()
        self._warn = warn
        self.path = folder / f"timing-{hashlib.sha256(self._key).hexdigest()[:16]}.cache"

    def load(self) -> bytes:
        """Return the timings on disk; empty where there are none that can be trusted."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._warn(f"timing cache {self.path} cannot be read ({error.strerror}); building without it")
            return b""
        head = len(_MAGIC) + _DIGEST
        digest, body = content[len(_MAGIC) : head], content[head:]
        if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            self._warn(f"timing cache {self.path} is damaged; building without it and replacing it")
            return b""
        if not body.startswith(self._key):
            self._warn(f"timing cache {self.path} is of another GPU, version or workspace; replacing it")
            return b""
        return body[len(self._key) :]

    def save(self, timings: bytes) -> None:
        """Write the timings, whole or not at all; a folder that cannot be written is a warning."""
        body = self._key + timings
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_atomically(self.path) as temporary:
                temporary.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)
        except OSError as error:
            self._warn(
                f"timing cache {self.path} cannot be written ({error.strerror or error}); it is not kept"
            )

    def attach(self, config: Any) -> None:
        """Give the builder's configuration the timings on disk, or an empty cache to fill.

        Never run so far, for want of full TensorRT: the names are those of the 10.13 and 11.4 bindings.
        """
        cache = config.create_timing_cache(self.load())
        if not config.set_timing_cache(cache, False):
            self._warn(f"TensorRT does not accept timing cache {self.path}; building without it")
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def collect(self, config: Any) -> None:
        """Merge what the build timed into the file, keeping what another build wrote meanwhile.

        Never run so far; see `attach`.
        """
        cache = config.get_timing_cache()
        if cache is None:
            return
        on_disk = self.load()
        if on_disk and not cache.combine(config.create_timing_cache(on_disk), False):
            self._warn(f"TensorRT does not merge timing cache {self.path}; replacing it")
        self.save(bytes(memoryview(cache.serialize())))
