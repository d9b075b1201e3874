"""Downloads, against a server that truncates, corrupts, stalls, ignores ranges and answers errors."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esrgan_deploy import _errors
from esrgan_deploy.export._download import cache_folder, fetch, resolve_checkpoint
from esrgan_deploy.export._names import Release

BODY = bytes((i * i + i // 7) % 256 for i in range(600_000))
Answer = Callable[["Handler"], None]


class Server(http.server.ThreadingHTTPServer):
    """Gives each request the next answer of a list, the last one for good."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = [whole]
        self.ranges: list[str | None] = []
        self.closing = threading.Event()

    def release(self, **fields: object) -> Release:
        url = f"http://127.0.0.1:{self.server_address[1]}/net.pth"
        known = {"name": "net.pth", "url": url, "size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}
        return Release(**(known | fields))  # type: ignore[arg-type]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_: object) -> None:
        pass

    def start(self) -> int:
        """Send the head that an honest server would send and return the first byte asked for."""
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        return start


def whole(handler: Handler) -> None:
    handler.wfile.write(BODY[handler.start() :])


def truncated(length: int) -> Answer:
    def answer(handler: Handler) -> None:
        start = handler.start()
        handler.wfile.write(BODY[start : start + length])

    return answer


def corrupted(handler: Handler) -> None:
    start = handler.start()
    handler.wfile.write(BODY[start:-1] + bytes([BODY[-1] ^ 1]))


def stalled(length: int) -> Answer:
    def answer(handler: Handler) -> None:
        truncated(length)(handler)
        handler.wfile.flush()
        handler.server.closing.wait(20)

    return answer


def ignoring_ranges(handler: Handler) -> None:
    del handler.headers["Range"]
    whole(handler)


def error(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


def web_page(handler: Handler) -> None:
    page = b"<html>Please sign in</html>"
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(page)))
    handler.end_headers()
    handler.wfile.write(page)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Path]:
    """Fetch the server's file in a hurry."""

    def fetched(release: Release | None = None, **options: object) -> Path:
        hurry = {"cache_dir": tmp_path, "stall_seconds": 0.3, "pause_seconds": 0.01, "attempts": 3}
        return fetch(release or server.release(), **(hurry | options))  # type: ignore[arg-type]

    return fetched


def _left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


Get = Callable[..., Path]


def test_a_file_is_downloaded_once_and_then_taken_from_the_cache(
    server: Server, get: Get, tmp_path: Path
) -> None:
    assert get() == tmp_path / "net.pth"
    assert get().read_bytes() == BODY
    assert server.ranges == [None]
    assert _left(tmp_path) == {"net.pth"}


def test_progress_goes_from_nothing_to_the_whole(get: Get) -> None:
    told: list[tuple[int, int]] = []
    get(progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)
    assert len(told) > 2


def test_a_line_that_breaks_off_is_gone_on_with(server: Server, get: Get) -> None:
    server.answers = [truncated(100_000), truncated(50_000), whole]
    assert get().read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_a_line_that_stalls_is_given_up_and_gone_on_with(server: Server, get: Get) -> None:
    server.answers = [stalled(100_000), whole]
    assert get().read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-"]


def test_a_server_that_only_stalls_is_told_with_the_time(server: Server, get: Get, tmp_path: Path) -> None:
    server.answers = [stalled(0)]
    with pytest.raises(_errors.CheckpointError, match=r"3 attempts.*nothing came for 0\.3 seconds"):
        get()
    assert not (tmp_path / "net.pth").exists()


def test_the_next_run_goes_on_where_the_last_one_gave_up(server: Server, get: Get, tmp_path: Path) -> None:
    server.answers = [truncated(1000)]
    with pytest.raises(_errors.CheckpointError, match=r"3000 of 600000 bytes are here.*run the same command"):
        get()
    assert _left(tmp_path) == {"net.pth.part"}
    server.answers = [whole]
    assert get().read_bytes() == BODY
    assert server.ranges[-1] == "bytes=3000-"
    assert _left(tmp_path) == {"net.pth"}


def test_what_an_interrupted_run_left_is_gone_on_with(server: Server, get: Get, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(progress=interrupt)
    have = (tmp_path / "net.pth.part").stat().st_size
    assert 0 < have < len(BODY)
    assert get().read_bytes() == BODY
    assert server.ranges == [None, f"bytes={have}-"]


def test_a_server_that_ignores_the_range_starts_over(server: Server, get: Get, tmp_path: Path) -> None:
    """Appended to what was here, its whole file would be garbage of the wrong length."""
    (tmp_path / "net.pth.part").write_bytes(BODY[:1000])
    server.answers = [ignoring_ranges]
    assert get().read_bytes() == BODY
    assert server.ranges == ["bytes=1000-"]


def test_a_server_that_refuses_the_range_is_asked_for_the_whole(
    server: Server, get: Get, tmp_path: Path
) -> None:
    (tmp_path / "net.pth.part").write_bytes(BODY[:1000])
    server.answers = [error(416), whole]
    assert get().read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", None]


@pytest.mark.parametrize(
    ("part", "asked"),
    [(BODY + b"x", [None]), (b"x" * len(BODY), [None]), (b"x" * 1000, ["bytes=1000-", None])],
    ids=["long", "full", "short"],
)
def test_a_part_of_something_else_is_thrown_away(
    part: bytes, asked: list[str | None], server: Server, get: Get, tmp_path: Path
) -> None:
    (tmp_path / "net.pth.part").write_bytes(part)
    assert get().read_bytes() == BODY
    assert server.ranges == asked


def test_a_part_that_is_whole_is_not_asked_for_again(server: Server, get: Get, tmp_path: Path) -> None:
    """A run that was killed between the last byte and the check has the file."""
    (tmp_path / "net.pth.part").write_bytes(BODY)
    assert get().read_bytes() == BODY
    assert server.ranges == []


def test_what_a_server_sends_beyond_the_file_is_left(server: Server, get: Get) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY + b"and more" * 1000)

    server.answers = [endless]
    assert get().read_bytes() == BODY


def test_a_file_larger_than_the_disk_is_not_begun(server: Server, get: Get) -> None:
    with pytest.raises(_errors.CheckpointError, match="bytes free and 1152921504606846976 are needed"):
        get(server.release(size=2**60))
    assert server.ranges == []


def test_a_corrupted_file_is_refused_and_removed(server: Server, get: Get, tmp_path: Path) -> None:
    server.answers = [corrupted]
    with pytest.raises(_errors.CheckpointError, match=r"sha256 is.*it was removed"):
        get()
    assert _left(tmp_path) == set()
    assert server.ranges == [None]


def test_a_corrupted_file_costs_no_good_one(server: Server, get: Get, tmp_path: Path) -> None:
    good = get().read_bytes()
    server.answers = [corrupted]
    with pytest.raises(_errors.CheckpointError, match="sha256"):
        get(server.release(name="other.pth"))
    assert get().read_bytes() == good
    assert _left(tmp_path) == {"net.pth"}


@pytest.mark.parametrize("cached", [BODY[:-1], BODY[:-1] + b"\x00", b""])
def test_a_damaged_cached_file_is_replaced(cached: bytes, server: Server, get: Get, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(cached)
    assert get().read_bytes() == BODY
    assert len(server.ranges) == 1


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_file_that_is_not_there_is_not_asked_for_again(code: int, server: Server, get: Get) -> None:
    server.answers = [error(code)]
    with pytest.raises(_errors.CheckpointError, match=f"answers {code}.*by hand"):
        get()
    assert len(server.ranges) == 1


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(code: int, server: Server, get: Get) -> None:
    server.answers = [error(code), error(code), whole]
    assert get().read_bytes() == BODY
    server.answers = [error(code)]
    with pytest.raises(_errors.CheckpointError, match=f"3 attempts.*answered {code}"):
        get(server.release(name="other.pth"))


def test_a_log_in_page_is_refused_before_it_is_stored(server: Server, get: Get, tmp_path: Path) -> None:
    server.answers = [web_page]
    with pytest.raises(_errors.CheckpointError, match="27 bytes of text/html and the file has 600000"):
        get()
    assert _left(tmp_path) == set()


def test_a_range_of_another_file_is_thrown_away(server: Server, get: Get, tmp_path: Path) -> None:
    """Kept, the part would make every later run fail in the same way."""
    (tmp_path / "net.pth.part").write_bytes(BODY[:1000])
    with pytest.raises(_errors.CheckpointError, match=r"600000 bytes.*and the file has 600001"):
        get(server.release(size=len(BODY) + 1))
    assert server.ranges == ["bytes=1000-", None]
    assert _left(tmp_path) == set()


def test_a_server_that_cuts_ranges_short_is_asked_again(server: Server, get: Get, tmp_path: Path) -> None:
    def cut(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 1000-1999/{len(BODY)}")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(BODY[1000:2000])

    (tmp_path / "net.pth.part").write_bytes(BODY[:1000])
    server.answers = [cut, whole]
    assert get().read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", "bytes=2000-"]


def test_a_redirection_keeps_the_range(server: Server, get: Get, tmp_path: Path) -> None:
    """GitHub answers each download of a release with a redirection to its storage."""

    def moved(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/storage")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    (tmp_path / "net.pth.part").write_bytes(BODY[:1000])
    server.answers = [moved, whole]
    assert get().read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", "bytes=1000-"]


def test_no_server_at_all_is_one_line(get: Get, server: Server) -> None:
    with pytest.raises(_errors.CheckpointError, match=r"3 attempts.*Connection refused") as caught:
        get(server.release(url="http://127.0.0.1:9/net.pth"))
    assert "\n" not in str(caught.value)


def test_offline_takes_what_is_cached_and_says_what_is_missing(
    server: Server, get: Get, tmp_path: Path
) -> None:
    release = server.release()
    with pytest.raises(_errors.CheckpointError) as caught:
        get(offline=True)
    for told in (str(tmp_path / "net.pth"), "missing", release.url, release.sha256, "600000 bytes"):
        assert told in str(caught.value)
    (tmp_path / "net.pth").write_bytes(b"broken")
    with pytest.raises(_errors.CheckpointError, match="damaged"):
        get(offline=True)
    assert (tmp_path / "net.pth").read_bytes() == b"broken"
    (tmp_path / "net.pth").write_bytes(BODY)
    assert get(offline=True).read_bytes() == BODY
    assert server.ranges == []


def test_two_processes_at_once_download_once(server: Server, tmp_path: Path) -> None:
    def slowly(handler: Handler) -> None:
        start = handler.start()
        for place in range(start, len(BODY), 100_000):
            handler.wfile.write(BODY[place : place + 100_000])
            handler.server.closing.wait(0.1)

    server.answers = [slowly]
    program = (
        "import sys; from pathlib import Path; from esrgan_deploy.export._names import Release; "
        "from esrgan_deploy.export._download import fetch; "
        "release = Release(name='net.pth', url=sys.argv[1], size=int(sys.argv[2]), sha256=sys.argv[3]); "
        "print(fetch(release, cache_dir=Path(sys.argv[4])))"
    )
    release = server.release()
    command = [sys.executable, "-c", program, release.url, str(release.size), release.sha256, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        out, _ = run.communicate(timeout=60)
        assert run.returncode == 0
        assert out.strip() == str(tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert server.ranges == [None]


def test_a_full_disk_is_one_line_and_the_cache_stays_usable(server: Server, get: Get, tmp_path: Path) -> None:
    """A limit on the size of files fails a write half-way, as a full disk does."""
    release = server.release()
    program = (
        "import resource, sys; from pathlib import Path; from esrgan_deploy._errors import CheckpointError; "
        "from esrgan_deploy.export._names import Release; from esrgan_deploy.export._download import fetch; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
        "release = Release(name='net.pth', url=sys.argv[1], size=int(sys.argv[2]), sha256=sys.argv[3])\n"
        "try: fetch(release, cache_dir=Path(sys.argv[4]))\n"
        "except CheckpointError as error: print(error)"
    )
    command = [sys.executable, "-c", program, release.url, str(release.size), release.sha256, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "cannot be written (File too large)" in run.stdout
    assert len(run.stdout.splitlines()) == 1
    assert get().read_bytes() == BODY


def test_a_cache_that_cannot_be_made_is_one_line(get: Get, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(_errors.CheckpointError, match=r"cannot be written.*ESRGAN_DEPLOY_CACHE"):
        get(cache_dir=tmp_path / "file" / "cache")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ESRGAN_DEPLOY_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "esrgan-deploy"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "esrgan-deploy"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/esrgan-deploy")
    monkeypatch.setenv("ESRGAN_DEPLOY_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


def test_a_name_that_is_not_official_lists_those_that_are() -> None:
    with pytest.raises(_errors.CheckpointError, match="RealESRGAN_x4plus, RealESRNet_x4plus"):
        fetch("RealESRGAN_x8plus")


def test_a_text_is_a_file_before_it_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("RealESRGAN_x4plus").write_bytes(b"mine")
    assert resolve_checkpoint("RealESRGAN_x4plus") == Path("RealESRGAN_x4plus")
    with pytest.raises(_errors.CheckpointError, match="missing and --offline"):
        resolve_checkpoint("RealESRGAN_x2plus", cache_dir=tmp_path, offline=True)
    with pytest.raises(_errors.CheckpointError, match=r"neither a file.*did you mean RealESRGAN_x4plus"):
        resolve_checkpoint("models/RealESRGAN_4xplus.pth")
    with pytest.raises(_errors.CheckpointError, match=r"neither a file.*official names: RealESRGAN_x4plus"):
        resolve_checkpoint("swinir.pth")


def test_downloading_needs_no_torch() -> None:
    """The command line answers about downloads before it pays for importing torch."""
    program = "import sys, esrgan_deploy.export._download; sys.exit('torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
