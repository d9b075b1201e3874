"""Official checkpoints, downloaded once and checked each time."""

import contextlib
import fcntl
import http.client
import io
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._files import cache_folder, sha256_of
from esrgan_deploy.export._names import OFFICIAL, Release, near_misses, official_release

__all__ = ["cache_folder", "fetch", "resolve_checkpoint"]

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes that there will be."""

_CHUNK = 256 * 1024


class _TryAgainError(Exception):
    """What went wrong may go right at the next attempt."""


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
    attempts: int = 5,
    pause_seconds: float = 1.0,
) -> Path:
    """Return the file of an official checkpoint, from the cache or from its release page.

    Size and SHA-256 are compared before the path is returned, those of a cached file as well. What an
    interrupted download left (``NAME.part``) is gone on with, where the server can; two processes at once
    download once.

    Args:
        name: An official name, or a file of your own to download.
        cache_dir: Where files are kept; None for `cache_folder`.
        offline: Use the cache alone.
        progress: Called now and then while downloading.
        stall_seconds: How long the line may give nothing.
        attempts: How often to connect in all.
        pause_seconds: Wait before the second attempt, doubled before each further one.

    Raises:
        CheckpointError: The name is not official, the file is missing and ``offline`` is set, the line
            fails, the cache cannot be written, or what came is not the file that was released.
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
    with _cannot_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"{release.name}.lock").open("ab")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have brought it while this one waited.
        if not _is_whole(target, release):
            part = folder / f"{release.name}.part"
            _download(release, part, progress, stall_seconds, attempts, pause_seconds)
            with _cannot_write(folder):
                part.replace(target)
    return target


def _is_whole(path: Path, release: Release) -> bool:
    try:
        return path.stat().st_size == release.size and sha256_of(path) == release.sha256
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _download(
    release: Release,
    part: Path,
    progress: Progress | None,
    stall_seconds: float,
    attempts: int,
    pause_seconds: float,
) -> None:
    for attempt in range(1, attempts + 1):
        try:
            resumed = _attempt(release, part, progress, stall_seconds)
            _check(release, part, resumed)
            return
        except _TryAgainError as error:
            if attempt == attempts:
                have = part.stat().st_size if part.exists() else 0
                raise CheckpointError(
                    f"{release.url} could not be downloaded in {attempts} attempts ({error}; {have} of "
                    f"{release.size} bytes are here); run the same command again to go on from there"
                ) from error
            time.sleep(pause_seconds * 2 ** (attempt - 1))


def _attempt(release: Release, part: Path, progress: Progress | None, stall_seconds: float) -> bool:
    """Bring the part file to its full length; return whether an earlier attempt had begun it."""
    have = part.stat().st_size if part.exists() else 0
    if have > release.size:
        part.unlink()
        have = 0
    if have == release.size:
        return True
    free = shutil.disk_usage(part.parent).free
    if free < release.size - have:
        raise CheckpointError(
            f"{part.parent} has {free} bytes free and {release.size - have} are needed; make room"
        )
    with _request(release, have, stall_seconds, part) as response:
        begun = _agreed_start(response, release, have, part)
        with _cannot_write(part.parent):
            # Unbuffered, so that closing after a failed write has nothing left that could fail once more.
            file = part.open("ab" if begun else "wb", buffering=0)
        with file:
            for chunk in _chunks(response, begun, release.size, progress, stall_seconds):
                with _cannot_write(part.parent):
                    _write_whole(file, chunk)
            with _cannot_write(part.parent):
                os.fsync(file.fileno())
    return begun > 0


def _chunks(
    response: http.client.HTTPResponse,
    have: int,
    size: int,
    progress: Progress | None,
    stall_seconds: float,
) -> Iterator[bytes]:
    while True:
        if progress is not None:
            progress(have, size)
        if have == size:
            return
        try:
            # read1 and not read: what has come counts, however slowly the rest follows.
            chunk = response.read1(min(_CHUNK, size - have))
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(_cause(error, stall_seconds)) from error
        if not chunk:
            raise _TryAgainError("the line broke off")
        yield chunk
        have += len(chunk)


def _write_whole(file: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _request(release: Release, have: int, stall_seconds: float, part: Path) -> http.client.HTTPResponse:
    headers = {"User-Agent": "esrgan-deploy"} | ({"Range": f"bytes={have}-"} if have else {})
    # The address is from the table of releases or the caller's own, never from a file or a server.
    request = urllib.request.Request(release.url, headers=headers)  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=stall_seconds)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            part.unlink(missing_ok=True)
            raise _TryAgainError("the server has no such range") from error
        if error.code in {408, 425, 429} or error.code >= 500:
            raise _TryAgainError(f"the server answered {error.code} {error.reason}") from error
        raise CheckpointError(
            f"{release.url} answers {error.code} {error.reason}; "
            f"download {release.name} by hand and give its path"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(_cause(error, stall_seconds)) from error
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _agreed_start(response: http.client.HTTPResponse, release: Release, have: int, part: Path) -> int:
    """Return the byte that the answer begins with: ``have``, or 0 where the server ignored the range."""
    if response.status == 206:
        span = response.headers.get("Content-Range", "")
        # The range may end early, as some servers cut it: what is missing is then asked for again.
        if not re.fullmatch(rf"bytes {have}-[0-9]+/({release.size}|\*)", span):
            part.unlink(missing_ok=True)
            raise _TryAgainError(f"the server answered with the range {span!r}")
        return have
    length = response.headers.get("Content-Length")
    if response.status != 200 or (length is not None and length != str(release.size)):
        raise CheckpointError(
            f"{release.url} answers {response.status} with {length} bytes of "
            f"{response.headers.get_content_type()} and the file has {release.size}; "
            "see whether the line leads to a log-in page, or download it by hand and give its path"
        )
    return 0


def _check(release: Release, part: Path, resumed: bool) -> None:
    digest = sha256_of(part)
    if digest == release.sha256:
        return
    part.unlink()
    if resumed:
        # The beginning may stem from another day or another server: once more from the start.
        raise _TryAgainError("the parts do not make the file that was released")
    raise CheckpointError(
        f"{release.url} gave a file whose sha256 is {digest} and not {release.sha256}; it was removed. "
        "It was changed on the way, or the release was replaced: "
        f"download {release.name} by hand and give its path"
    )


def _cause(error: Exception, stall_seconds: float) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"nothing came for {stall_seconds:g} seconds"
    return one_line(reason) or type(reason).__name__


@contextlib.contextmanager
def _cannot_write(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror or error}); "
            "set ESRGAN_DEPLOY_CACHE to a folder that can be"
        ) from error
