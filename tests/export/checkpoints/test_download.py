"""Downloads, against a server that truncates, corrupts, stalls, moves and answers errors."""

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
from esrgan_deploy.export.checkpoints import resolve_checkpoint
from esrgan_deploy.export.checkpoints._official import Release, fetch

BODY = bytes((i * i + i // 7) % 256 for i in range(600_000))
Answer = Callable[["Handler"], None]

FETCH = """
import resource, sys
from pathlib import Path
from esrgan_deploy._errors import CheckpointError
from esrgan_deploy.export.checkpoints._official import Release
from esrgan_deploy.export.checkpoints._official import fetch
release = Release(name="net.pth", url=sys.argv[1], size=int(sys.argv[2]), sha256=sys.argv[3])
if sys.argv[5] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]),) * 2)
try:
    print(fetch(release, cache_dir=Path(sys.argv[4])))
except CheckpointError as error:
    print(error)
"""


class Server(http.server.ThreadingHTTPServer):
    """Gives each request the next answer of a list, the last one for good."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = [whole]
        self.asked: list[str] = []
        self.closing = threading.Event()

    def release(self, **fields: object) -> Release:
        url = f"http://127.0.0.1:{self.server_address[1]}/net.pth"
        known = {"name": "net.pth", "url": url, "size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}
        return Release(**(known | fields))  # type: ignore[arg-type]

    def process(self, folder: Path, largest: int = 0) -> "subprocess.Popen[str]":
        """Fetch the file in a process of its own, which cannot write files larger than some bytes."""
        release = self.release()
        given = [release.url, str(release.size), release.sha256, str(folder), str(largest)]
        return subprocess.Popen([sys.executable, "-c", FETCH, *given], stdout=subprocess.PIPE, text=True)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_: object) -> None:
        pass

    def give(self, body: bytes, *, length: int = len(BODY)) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)


def whole(handler: Handler) -> None:
    handler.give(BODY)


def truncated(handler: Handler) -> None:
    handler.give(BODY[:1000])


def corrupted(handler: Handler) -> None:
    handler.give(BODY[:-1] + bytes([BODY[-1] ^ 1]))


def stalled(handler: Handler) -> None:
    handler.give(b"")
    handler.wfile.flush()
    handler.server.closing.wait(20)


def missing(handler: Handler) -> None:
    handler.send_error(404)


def web_page(handler: Handler) -> None:
    page = b"<html>Please sign in</html>"
    handler.give(page, length=len(page))


def moved(handler: Handler) -> None:
    """GitHub answers each download of a release with a redirection to its storage."""
    handler.send_response(302)
    handler.send_header("Location", "/storage")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def slowly(handler: Handler) -> None:
    handler.give(b"")
    for place in range(0, len(BODY), 100_000):
        handler.wfile.write(BODY[place : place + 100_000])
        handler.server.closing.wait(0.1)


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
        hurry = {"cache_dir": tmp_path, "stall_seconds": 0.3, "retries": 0}
        return fetch(release or server.release(), **(hurry | options))  # type: ignore[arg-type]

    return fetched


def _left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


Get = Callable[..., Path]


def test_a_file_is_downloaded_once_and_then_taken_from_the_cache(
    server: Server, get: Get, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each export would fetch 64 MiB."""
    assert get() == tmp_path / "net.pth"
    assert get().read_bytes() == BODY
    assert server.asked == ["/net.pth"]
    assert _left(tmp_path) == {"net.pth"}
    assert get().stat().st_mode & 0o777 == 0o644
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_the_whole(get: Get) -> None:
    """Who waits wants to know for how long."""
    told: list[tuple[int, int]] = []
    get(progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)
    assert len(told) > 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (truncated, "1 attempts.*run the same command again"),
        (stalled, r"1 attempts.*timed out.*run the same command again"),
        (missing, "404.*by hand"),
        (corrupted, r"gave a file whose sha256 is not .*it was removed.*by hand"),
        (web_page, r"gave a file whose sha256 is not .*log-in page.*by hand"),
    ],
)
def test_what_goes_wrong_is_one_line_and_costs_no_good_file(
    answer: Answer, message: str, server: Server, get: Get, tmp_path: Path
) -> None:
    """Half a file under the right name would fail at every later export."""
    get()
    server.answers = [answer]
    with pytest.raises(_errors.CheckpointError, match=message) as caught:
        get(server.release(name="other.pth"))
    assert "\n" not in str(caught.value)
    assert _left(tmp_path) == {"net.pth"}
    assert get().read_bytes() == BODY


def test_a_line_that_breaks_off_is_tried_again(server: Server, get: Get) -> None:
    """A server that is busy for a second must not end a night's export."""
    server.answers = [truncated, whole]
    assert get(retries=1).read_bytes() == BODY


def test_a_redirection_is_followed(server: Server, get: Get) -> None:
    """Each official file lies behind one."""
    server.answers = [moved, whole]
    assert get().read_bytes() == BODY
    assert server.asked == ["/net.pth", "/storage"]


@pytest.mark.parametrize("cached", [BODY[:-1], BODY[:-1] + b"\x00", b""])
def test_a_damaged_cached_file_is_replaced(cached: bytes, get: Get, tmp_path: Path) -> None:
    """It would be read as a broken checkpoint."""
    (tmp_path / "net.pth").write_bytes(cached)
    assert get().read_bytes() == BODY


def test_no_server_at_all_is_one_line(get: Get, server: Server) -> None:
    """A page of nested causes hides the one that matters."""
    with pytest.raises(_errors.CheckpointError, match=r"1 attempts.*Connection refused") as caught:
        get(server.release(url="http://127.0.0.1:9/net.pth"))
    assert "\n" not in str(caught.value)


def test_offline_takes_what_is_cached_and_says_what_is_missing(
    server: Server, get: Get, tmp_path: Path
) -> None:
    """Behind a firewall the file comes by hand, and one has to know which and where to."""
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
    assert server.asked == []


def test_two_processes_at_once_download_once(server: Server, tmp_path: Path) -> None:
    """A cluster that starts together would fetch the file once a process."""
    server.answers = [slowly]
    for run in [server.process(tmp_path) for _ in range(2)]:
        assert run.communicate(timeout=60)[0].strip() == str(tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert server.asked == ["/net.pth"]


def test_what_a_killed_process_left_is_removed(server: Server, get: Get, tmp_path: Path) -> None:
    """Every interrupted download would cost 64 MiB of the cache for good."""
    server.answers = [stalled, whole]
    run = server.process(tmp_path)
    while not server.asked:
        assert run.poll() is None
    run.kill()
    run.communicate()
    assert len(_left(tmp_path)) == 1
    get()
    assert _left(tmp_path) == {"net.pth"}


def test_a_full_disk_is_one_line_and_the_cache_stays_usable(server: Server, get: Get, tmp_path: Path) -> None:
    """A limit on the size of files fails a write half-way, as a full disk does."""
    said = server.process(tmp_path, largest=300_000).communicate(timeout=60)[0]
    assert "cannot be written (File too large)" in said
    assert len(said.splitlines()) == 1
    assert get().read_bytes() == BODY


def test_a_cache_that_cannot_be_made_is_one_line(get: Get, tmp_path: Path) -> None:
    """A read-only home is the user's to mend."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(_errors.CheckpointError, match=r"cannot be written.*ESRGAN_DEPLOY_CACHE"):
        get(cache_dir=tmp_path / "file" / "cache")


def test_a_name_that_is_not_official_lists_those_that_are() -> None:
    """One letter off is the usual mistake."""
    with pytest.raises(_errors.CheckpointError, match="RealESRGAN_x4plus, RealESRNet_x4plus"):
        fetch("RealESRGAN_x8plus")


def test_a_text_is_a_file_before_it_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies there is what was meant."""
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
    program = "import sys, esrgan_deploy.export.checkpoints._official; sys.exit('torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
