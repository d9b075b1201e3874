"""The table of official checkpoints."""

import re
from pathlib import Path

import pytest

from esrgan_deploy.export.checkpoints import OFFICIAL
from esrgan_deploy.export.checkpoints._official import near_misses, official_release


def test_each_entry_of_the_table_is_whole() -> None:
    """A digit lost from a digest would refuse the right file for good."""
    for name, release in OFFICIAL.items():
        assert release.url == (
            f"https://github.com/xinntao/Real-ESRGAN/releases/download/{release.url.split('/')[-2]}/{name}.pth"
        )
        assert len(release.sha256) == 64
        assert set(release.sha256) <= set("0123456789abcdef")
    assert len({release.sha256 for release in OFFICIAL.values()}) == len(OFFICIAL) == 7


@pytest.mark.parametrize(
    "text", ["RealESRGAN_x4plus", "RealESRGAN_x4plus.pth", "realesrgan_X4PLUS", "RealESRGAN_x4plus.PTH"]
)
def test_a_name_is_found_with_its_suffix_and_in_any_case(text: str) -> None:
    assert official_release(text) is not None
    assert official_release(text) is OFFICIAL["RealESRGAN_x4plus"]


@pytest.mark.parametrize(
    "text", ["", "RealESRGAN", "RealESRGAN_x4plus.onnx", "./RealESRGAN_x4plus", "x4plus"]
)
def test_anything_else_is_no_name(text: str) -> None:
    assert official_release(text) is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("RealESRGAN_x4", "RealESRGAN_x4plus"),
        ("realesrgan-x4plus.pth", "RealESRGAN_x4plus"),
        ("RealESRGANx2plus", "RealESRGAN_x2plus"),
        ("RealESRGAN_x4plus_anime", "RealESRGAN_x4plus_anime_6B"),
        ("animevideov3", "realesr-animevideov3"),
        ("realesr-general-x4", "realesr-general-x4v3"),
    ],
)
def test_the_likeliest_name_comes_first(text: str, meant: str) -> None:
    assert near_misses(text)[0] == meant


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert near_misses("swinir") == []


def test_the_table_agrees_with_the_digests_that_were_collected(assets: Path) -> None:
    rows = re.findall(
        r"^\| (\S+\.pth) \| (\d+) \| ([0-9a-f]{64})\b", (assets / "README.md").read_text(), re.M
    )
    assert {(name, int(size), sha256) for name, size, sha256 in rows} == {
        (release.name, release.size, release.sha256) for release in OFFICIAL.values()
    }


def test_the_second_checkpoint_may_be_an_official_name(tmp_path, monkeypatch, capsys):
    """A name beside --denoise-with would be looked for as a file, though the model itself may be a name."""
    from esrgan_deploy.export._cli import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"")
    argv = ["a.pth", "--denoise-strength", "0.5", "--denoise-with", "realesr-general-wdn-x4v3"]
    assert main([*argv, "--offline", "--no-plan", "-o", str(tmp_path / "out")]) == 1
    assert "missing and --offline" in capsys.readouterr().err
