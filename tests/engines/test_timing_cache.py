"""What a build takes from the timings of earlier ones and leaves to later ones, with TensorRT's calls faked."""

from pathlib import Path
from typing import Any

import pytest

from esrgan_deploy.engines._compile import TimingCache


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, warnings: list[str]) -> TimingCache:
    return TimingCache(tmp_path / "timings", "timing", {"gpu": "NVIDIA H200"}, warn=warnings.append)


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
