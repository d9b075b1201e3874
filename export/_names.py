"""The checkpoints that Real-ESRGAN released, by name."""

import dataclasses
import difflib
from pathlib import PurePath

from esrgan_deploy._files import CHECKPOINTS

__all__ = ["OFFICIAL", "Release", "folder_name", "is_official_name", "near_misses", "official_release"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Release:
    """A file that can be downloaded.

    Attributes:
        name: The file's name.
        url: Where it lies.
        size: Its length in bytes.
        sha256: Its digest, 64 hexadecimal digits.
    """

    name: str
    url: str
    size: int
    sha256: str


def _release(tag: str, name: str, size: int, sha256: str) -> Release:
    url = f"https://github.com/xinntao/Real-ESRGAN/releases/download/{tag}/{name}.pth"
    return Release(name=f"{name}.pth", url=url, size=size, sha256=sha256)


# Tags and file names as in inference_realesrgan.py of xinntao/Real-ESRGAN (v0.3.0).
OFFICIAL = {
    release.name.removesuffix(".pth"): release
    for release in (
        _release(
            "v0.1.0",
            "RealESRGAN_x4plus",
            67040989,
            "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        ),
        _release(
            "v0.1.1",
            "RealESRNet_x4plus",
            67040989,
            "a820b9bde89a874d7599d545567308ce6c128fc8754a53208eda016d40aa81df",
        ),
        _release(
            "v0.2.1",
            "RealESRGAN_x2plus",
            67061725,
            "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        ),
        _release(
            "v0.2.2.4",
            "RealESRGAN_x4plus_anime_6B",
            17938799,
            "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
        ),
        _release(
            "v0.2.5.0",
            "realesr-animevideov3",
            2504012,
            "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d",
        ),
        _release(
            "v0.2.5.0",
            "realesr-general-x4v3",
            4885111,
            "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        ),
        _release(
            "v0.2.5.0",
            "realesr-general-wdn-x4v3",
            4885111,
            "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
        ),
    )
}
"""Each official checkpoint by its name without ``.pth``."""

_FOLDED = {name.casefold(): release for name, release in OFFICIAL.items()}


def official_release(text: str) -> Release | None:
    """Return the official checkpoint of that name, with or without ``.pth`` and in any case, or None."""
    return _FOLDED.get(text.casefold().removesuffix(".pth"))


def is_official_name(text: str) -> bool:
    """Return whether a text names an official checkpoint."""
    return official_release(text) is not None


def folder_name(model: str | None) -> str:
    """Return what the folder of an export is called where nobody says: the model's name without its suffix.

    Only what is a suffix goes: "4x v1.5.pth" becomes "4x v1.5", and "4x v1.5" stays.
    """
    if model is None:
        return "default"
    path = PurePath(model)
    return path.stem if path.suffix.lower() in (*CHECKPOINTS, ".onnx") else path.name


def near_misses(text: str) -> list[str]:
    """Return up to three official names that a text may have meant, the likeliest first."""
    wanted = text.casefold().removesuffix(".pth")
    found = difflib.get_close_matches(wanted, _FOLDED, n=3, cutoff=0.6)
    return [_FOLDED[name].name.removesuffix(".pth") for name in found]
