"""Official checkpoints, downloaded once and checked each time."""

from collections.abc import Callable
from pathlib import Path

from esrgan_deploy._cache import cache_folder
from esrgan_deploy._console import one_line
from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._files import locked, sha256_of, temporary_folder
from esrgan_deploy._optional import require
from esrgan_deploy.export._names import OFFICIAL, Release, near_misses, official_release

__all__ = ["fetch", "resolve_checkpoint"]

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes that there will be."""


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
