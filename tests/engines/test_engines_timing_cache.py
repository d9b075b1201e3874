"""The file around TensorRT's timing cache; TensorRT itself aborts the process on one wrong byte."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from esrgan_deploy.engines._timing_cache import CacheKey, TimingCache

KEY = CacheKey(
    gpu="NVIDIA H200",
    compute_capability="9.0",
    tensorrt="11.4.0.106",
    driver=13000,
    runtime=13000,
    workspace=None,
    hardware_compatibility="none",
)
TIMINGS = bytes(range(256))


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, warnings: list[str]) -> TimingCache:
    return TimingCache(tmp_path / "timings", KEY, warn=warnings.append)


def test_what_is_saved_is_loaded(cache: TimingCache, warnings: list[str]) -> None:
    """A cache that never hits costs minutes in each build."""
    assert cache.load() == b""
    cache.save(TIMINGS)
    assert cache.load() == TIMINGS
    assert warnings == []
    assert [path.name for path in cache.path.parent.iterdir()] == [cache.path.name]


def test_every_flipped_byte_is_a_miss(cache: TimingCache, warnings: list[str]) -> None:
    """One that passes ends the process inside TensorRT, and nothing can catch that."""
    cache.save(TIMINGS)
    content = cache.path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        cache.path.write_bytes(damaged)
        assert cache.load() == b"", f"byte {place}"
    assert len(warnings) == len(content)
    assert "damaged" in warnings[-1]


@pytest.mark.parametrize("length", [0, 1, 20, 60, 61, 62, -1])
def test_a_truncated_file_is_a_miss(length: int, cache: TimingCache, warnings: list[str]) -> None:
    """A full disk or a killed copy leaves one."""
    cache.save(TIMINGS)
    cache.path.write_bytes(cache.path.read_bytes()[:length])
    assert cache.load() == b""
    assert "damaged" in warnings[0]


def test_a_file_under_a_foreign_name_is_a_miss(cache: TimingCache, warnings: list[str]) -> None:
    """Someone copies a cache from another machine over this one's."""
    other = TimingCache(cache.path.parent, dataclasses.replace(KEY, gpu="RTX 4090"), warn=warnings.append)
    other.save(TIMINGS)
    cache.path.write_bytes(other.path.read_bytes())
    assert cache.load() == b""
    assert "another GPU" in warnings[0]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CacheKey)])
def test_everything_that_a_timing_depends_on_has_its_own_file(field: str, cache: TimingCache) -> None:
    """A workspace that is no part of the key lets kernels in that do not fit it."""
    other = dataclasses.replace(
        KEY, **{field: 1 if getattr(KEY, field) is None else type(getattr(KEY, field))(8)}
    )
    assert TimingCache(cache.path.parent, other, warn=print).path != cache.path


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, warnings: list[str]) -> None:
    """The plan is built by then; it must not be lost for its cache."""
    file = tmp_path / "file"
    file.write_text("kept")
    cache = TimingCache(file, KEY, warn=warnings.append)
    assert cache.load() == b""
    cache.save(TIMINGS)
    assert len(warnings) >= 1
    assert "it is not kept" in warnings[-1]
    assert file.read_text() == "kept"


class FakeCache:
    """The calls of ``ITimingCache``; a set of entries stands for the timings."""

    def __init__(self, content: bytes, *, combines: bool = True) -> None:
        self.entries = set(content)
        self.combines = combines

    def combine(self, other: "FakeCache", ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if self.combines:
            self.entries |= other.entries
        return self.combines

    def serialize(self) -> bytes:
        return bytes(sorted(self.entries))


class FakeConfig:
    """The calls of ``IBuilderConfig`` that a cache needs: full TensorRT cannot be installed here."""

    def __init__(self, *, accepts: bool = True, combines: bool = True) -> None:
        self._accepts, self._combines = accepts, combines
        self.created: list[bytes] = []
        self.cache: Any = None

    def create_timing_cache(self, content: bytes) -> FakeCache:
        self.created.append(content)
        return FakeCache(content, combines=self._combines)

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if not self._accepts and cache.entries:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


def test_two_builds_at_once_keep_what_both_timed(cache: TimingCache) -> None:
    """The second to end would overwrite the first."""
    one, two = FakeConfig(), FakeConfig()
    cache.attach(one)
    cache.attach(two)
    one.cache.entries |= {1}
    two.cache.entries |= {2}
    cache.collect(one)
    cache.collect(two)
    assert cache.load() == b"\1\2"


def test_a_damaged_file_never_reaches_tensorrt(cache: TimingCache, warnings: list[str]) -> None:
    """That is the whole point."""
    cache.save(b"\5")
    cache.path.write_bytes(cache.path.read_bytes()[:-1] + b"\6")
    config = FakeConfig()
    cache.attach(config)
    cache.collect(config)
    assert config.created == [b""]
    assert len(warnings) == 2


def test_timings_that_tensorrt_rejects_are_left_out(cache: TimingCache, warnings: list[str]) -> None:
    """set_timing_cache says no by returning False, and the build would go on without any cache."""
    cache.save(b"\5")
    config = FakeConfig(accepts=False)
    cache.attach(config)
    assert config.cache.entries == set()
    assert "does not accept" in warnings[0]


def test_timings_that_do_not_merge_are_replaced(cache: TimingCache, warnings: list[str]) -> None:
    """combine says no by returning False."""
    config = FakeConfig(combines=False)
    cache.attach(config)
    config.cache.entries |= {9}
    cache.save(b"\5")
    cache.collect(config)
    assert cache.load() == b"\x09"
    assert "does not merge" in warnings[0]


def test_a_build_without_a_cache_has_nothing_to_collect(cache: TimingCache) -> None:
    """get_timing_cache returns None after a failed attach."""
    cache.collect(FakeConfig())
    assert not cache.path.exists()
