"""Files of bytes that belong to a key: TensorRT aborts the process on one wrong byte in them."""

from pathlib import Path

import pytest

from esrgan_deploy._cache import KeyedFile, cache_folder

KEY = {"gpu": "NVIDIA RTX 4090", "driver": 13000, "workspace": None}
CONTENT = bytes(range(32))


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, warnings: list[str]) -> KeyedFile:
    return KeyedFile(tmp_path / "new" / "folder", "kernels", KEY, warn=warnings.append)


def test_what_is_saved_is_loaded_by_whoever_has_the_key(cache: KeyedFile, warnings: list[str]) -> None:
    """A cache that never hits costs minutes in each build and each start."""
    assert cache.load() == b""
    assert cache.save(CONTENT)
    assert KeyedFile(cache.path.parent, "kernels", dict(reversed(KEY.items()))).load() == CONTENT
    assert cache.save(b"more")
    assert cache.load() == b"more"
    assert warnings == []
    assert [path.name for path in cache.path.parent.iterdir()] == [cache.path.name]


def test_every_flipped_byte_is_a_miss(cache: KeyedFile, warnings: list[str]) -> None:
    """One that passes ends the process inside TensorRT, and nothing can catch that."""
    cache.save(CONTENT)
    content = cache.path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        cache.path.write_bytes(damaged)
        assert cache.load() == b"", f"byte {place}"
    assert len(warnings) == len(content)
    assert "damaged" in warnings[-1]


@pytest.mark.parametrize("length", [0, 1, 20, 53, 54, 55, -1])
def test_a_truncated_file_is_a_miss(length: int, cache: KeyedFile, warnings: list[str]) -> None:
    """A full disk or a killed copy leaves one."""
    cache.save(CONTENT)
    cache.path.write_bytes(cache.path.read_bytes()[:length])
    assert cache.load() == b""
    assert "damaged" in warnings[0]


@pytest.mark.parametrize("field", KEY)
def test_another_key_is_another_file(field: str, cache: KeyedFile, warnings: list[str]) -> None:
    """Also where someone copies the file of another machine over this one's."""
    other = KeyedFile(cache.path.parent, "kernels", KEY | {field: 8}, warn=warnings.append)
    assert other.path != cache.path
    other.save(CONTENT)
    other.path.rename(cache.path)
    assert cache.load() == b""
    assert "another machine" in warnings[0]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, warnings: list[str]) -> None:
    """The plan is built by then, and a container with a read-only home starts slowly, and starts."""
    file = tmp_path / "file"
    file.write_text("kept")
    cache = KeyedFile(file, "kernels", KEY, warn=warnings.append)
    assert cache.load() == b""
    assert not cache.save(CONTENT)
    assert "it is not kept" in warnings[-1]
    assert file.read_text() == "kept"


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One variable moves all that the package keeps."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ESRGAN_DEPLOY_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "esrgan-deploy"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "esrgan-deploy"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/esrgan-deploy")
    monkeypatch.setenv("ESRGAN_DEPLOY_CACHE", "~/own")
    assert cache_folder("kernels") == tmp_path / "own" / "kernels"
