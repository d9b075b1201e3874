"""The official checkpoints: their names, and how they come here."""

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path, PurePath

from esrgan_deploy._cache import cache_folder
from esrgan_deploy._console import one_line
from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._files import CHECKPOINTS, locked, sha256_of, temporary_folder
from esrgan_deploy._optional import require

__all__ = [
    "OFFICIAL",
    "Release",
    "fetch",
    "folder_name",
    "near_misses",
    "official_release",
    "resolve_checkpoint",
]

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes that there will be."""


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


def resolve_checkpoint(
    text: str, *, cache_dir: Path | None = None, offline: bool = False, progress: Progress | None = None
) -> Path:
    """Return the file that a path or an official name stands for; the name is downloaded where it has to be.

    A file of that path goes before an official name.

    Raises:
        CheckpointError: It is neither, or the download fails.
    """
    path = Path(text)
    if path.exists():
        # Before it is opened: opening a pipe waits for someone to write into it.
        if not path.is_file() and not path.is_dir():
            raise CheckpointError(
                f"{path} is a pipe or a device and no regular file; save it to a file first"
            )
        return path
    if official_release(text) is not None:
        return fetch(text, cache_dir=cache_dir, offline=offline, progress=progress)
    meant = near_misses(path.name)
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"official names: {', '.join(OFFICIAL)}"
    raise CheckpointError(f"{text} is neither a file nor an official name; {hint}")


def fetch(
    name: str | Release,
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    stall_seconds: float = 30.0,
    retries: int = 2,
) -> Path:
    """Return the file of an official checkpoint, from the cache or from its release page.

    Size and SHA-256 are compared before the path is returned, those of a cached file as well. Two processes at once
    download once, and what a killed one left is removed.

    Args:
        name: An official name, or a file of your own to download.
        cache_dir: Where files are kept; None for `cache_folder`.
        offline: Use the cache alone.
        progress: Called now and then while downloading.
        stall_seconds: How long the line may give nothing.
        retries: How often to begin anew.

    Raises:
        CheckpointError: The name is not official, the file is missing and ``offline`` is set, the line
            fails, the cache cannot be written, or what came is not the file that was released.
        MissingDependencyError: The extra ``export`` is not installed.
    """
    release = name if isinstance(name, Release) else official_release(name)
    if release is None:
        raise CheckpointError(f"{name} is not an official name; these are: {', '.join(OFFICIAL)}")
    folder = cache_dir if cache_dir is not None else cache_folder()
    target = folder / release.name
    if _is_whole(target, release):
        return target
    if offline:
        state = "damaged" if target.exists() else "missing"
        raise CheckpointError(
            f"{target} is {state} and --offline forbids the download; put {release.url} ({release.size} "
            f"bytes, sha256 {release.sha256}) there, or run without --offline"
        )
    failed = require("requests.exceptions", extra="export").RequestException
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{release.name}.lock"), temporary_folder(folder) as own:
            # Another process may have brought it while this one waited.
            if not _is_whole(target, release):
                _download(release, own, progress, stall_seconds, retries).replace(target)
    except failed as error:
        if error.response is not None:
            error.response.close()
        raise CheckpointError(
            f"{release.url} could not be downloaded in {retries + 1} attempts ({one_line(error)}); run the same "
            f"command again, or download {release.name} by hand and give its path"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror or error}); "
            "make room, or set ESRGAN_DEPLOY_CACHE to a folder that can be"
        ) from error
    return target


def _is_whole(path: Path, release: Release) -> bool:
    try:
        return path.stat().st_size == release.size and sha256_of(path) == release.sha256
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _download(
    release: Release, folder: Path, progress: Progress | None, stall_seconds: float, retries: int
) -> Path:
    pooch = require("pooch", extra="export")
    # It says on stderr what is said here already.
    pooch.get_logger().setLevel("ERROR")

    def attempt(url: str, output: str, caller: object) -> None:
        bar = False if progress is None else _Bar(progress, release.size)
        pooch.HTTPDownloader(bar, chunk_size=2**18, timeout=stall_seconds)(url, output, caller)

    source = pooch.create(
        folder,
        base_url="",
        registry={release.name: f"sha256:{release.sha256}"},
        urls={release.name: release.url},
        retry_if_failed=retries,
    )
    try:
        path = Path(source.fetch(release.name, downloader=attempt))
    except ValueError as error:
        raise CheckpointError(
            f"{release.url} gave a file whose sha256 is not {release.sha256}; it was removed. It was changed on the "
            "way (a log-in page?), or the release was replaced: "
            f"download {release.name} by hand and give its path"
        ) from error
    # It is made for its owner alone, and the cache may be shared.
    path.chmod(0o644)
    return path


class _Bar:
    """What pooch moves in the place of a progress bar of tqdm."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.total, self._progress, self._size, self._done = total, progress, total, 0

    def update(self, count: int) -> None:
        # The last chunk is counted as a whole one.
        self._done = min(self._done + count, self._size)
        self._progress(self._done, self._size)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        pass
