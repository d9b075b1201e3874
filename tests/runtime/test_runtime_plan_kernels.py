"""The kernels of TensorRT for RTX on disk: a file is trusted only if it is the one that was written."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esrgan_deploy.runtime._runtime_cache import CacheKey, RuntimeCache

Rig = Callable[..., Any]

KEY = CacheKey(plan="ab" * 32, version="1.7.1.116", gpu="NVIDIA RTX 4090", driver=13000)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """Else every start compiles for half a minute."""
    cache = RuntimeCache(KEY, tmp_path / "new" / "folder")
    assert cache.load() == b""
    assert cache.save(b"kernels")
    assert RuntimeCache(KEY, tmp_path / "new" / "folder").load() == b"kernels"
    assert cache.save(b"more kernels")
    assert cache.load() == b"more kernels"
    assert [path.name for path in cache.path.parent.iterdir()] == [cache.path.name]


@pytest.mark.parametrize(
    "change", [{"plan": "cd" * 32}, {"version": "1.8"}, {"gpu": "NVIDIA RTX 5090"}, {"driver": 13010}]
)
def test_another_key_is_another_file(tmp_path: Path, change: dict[str, Any]) -> None:
    """Kernels of another plan, version, card or driver; and a file that was renamed is not believed either."""
    cache, other = RuntimeCache(KEY, tmp_path), RuntimeCache(dataclasses.replace(KEY, **change), tmp_path)
    cache.save(b"kernels")
    assert other.load() == b""
    cache.path.rename(other.path)
    assert other.load() == b""


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[:40],
        lambda b: b[:-1],
        lambda b: b + b"?",
        lambda b: b[:-1] + b"?",
        lambda b: b"x" + b[1:],
    ],
)
def test_a_damaged_file_is_a_miss(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """It would be handed to a parser of machine code."""
    cache = RuntimeCache(KEY, tmp_path)
    cache.save(b"kernels")
    cache.path.write_bytes(damage(cache.path.read_bytes()))
    assert cache.load() == b""


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """A container with a read-only home starts slowly, and starts."""
    (tmp_path / "file").write_bytes(b"")
    cache = RuntimeCache(KEY, tmp_path / "file")
    assert not cache.save(b"kernels")
    assert cache.load() == b""


def test_the_folder_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One variable moves all that the package keeps."""
    monkeypatch.setenv("ESRGAN_DEPLOY_CACHE", str(tmp_path))
    assert RuntimeCache(KEY).path.parent == tmp_path / "kernels"


def test_a_session_keeps_its_kernels(rig: Rig, tmp_path: Path) -> None:
    """Written after the first batch, as a service may never be closed; loaded by the next session."""
    gpu = rig(rtx=True)
    first = gpu.open()
    assert gpu.engine.cache.offered is None
    gpu.engine.cache.kernels = b"kernels of the first"
    first.run(np.zeros((1, 8, 8, 3), np.uint8))
    (file,) = (tmp_path / "cache" / "kernels").iterdir()
    assert file.read_bytes().endswith(b"kernels of the first")
    gpu.engine.cache.kernels = b"kernels of a later shape"
    first.close()
    assert file.read_bytes().endswith(b"kernels of a later shape")
    again = gpu.open()
    assert gpu.engine.cache.offered == b"kernels of a later shape"
    written = file.stat().st_mtime_ns
    again.run(np.zeros((1, 8, 8, 3), np.uint8))
    again.close()
    assert file.stat().st_mtime_ns == written


def test_kernels_that_tensorrt_refuses_are_replaced(rig: Rig, tmp_path: Path) -> None:
    """It knows more of the machine than the key."""
    gpu = rig(rtx=True)
    first = gpu.open()
    gpu.engine.cache.kernels = b"of another compiler"
    first.close()
    second = gpu.open()
    assert gpu.engine.cache.offered == b"of another compiler"
    second.close()
    (file,) = (tmp_path / "cache" / "kernels").iterdir()
    assert file.read_bytes().endswith(b"kernels of nothing")


def test_full_tensorrt_keeps_none(rig: Rig, tmp_path: Path) -> None:
    """Its kernels are in the plan."""
    gpu = rig()
    with_plan = gpu.open()
    with_plan.run(np.zeros((1, 8, 8, 3), np.uint8))
    with_plan.close()
    assert not (tmp_path / "cache").exists()
