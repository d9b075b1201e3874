"""A job does each item once, whatever happens in between, and names what it cannot do."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esrgan_deploy import MediaError
from esrgan_deploy.runtime import Job, Upscaler
from esrgan_deploy.runtime import pictures as picture_room

JOURNAL = Path("out/.esrgan-job.sqlite")


class Told(list):
    """Collects events."""

    def __call__(self, event) -> None:
        self.append(event)

    def of(self, kind: str) -> list[str]:
        """The sources of one kind."""
        return sorted(str(event.source) for event in self if event.event == kind)


def run(up, *inputs: str, remake: bool = False, **how):
    """Run a job on ``in``, or on other inputs, into ``out``."""
    told = Told()
    return Job(inputs or ["in"], "out", **how).run(up, remake=remake, on_event=told), told


def width(path: str) -> int:
    """Of a picture."""
    with Image.open(path) as image:
        return image.width


def outputs() -> set[str]:
    """What lies in the folder."""
    return {str(path) for path in Path("out").rglob("*") if path.is_file()} - {str(JOURNAL)}


ALL = {"out/a.png", "out/b.png", "out/sub/c.png", "out/sub/d.bmp"}
GOOD = ["in/a.png", "in/b.png", "in/sub/c.png", "in/sub/d.bmp"]


def test_a_folder_is_done_and_the_bad_one_named(up):
    """One bad file stopped whole nights in other programs."""
    result, told = run(up)
    assert outputs() == ALL
    for name in GOOD:
        with Image.open(name) as small, Image.open(name.replace("in/", "out/", 1)) as large:
            expected = np.asarray(small).repeat(2, axis=0).repeat(2, axis=1)
            np.testing.assert_array_equal(np.asarray(large), expected)
    assert (result.done, result.made, result.skipped, result.pending) == (4, 4, 0, 0)
    ((source, reason),) = result.failed
    assert source == "in/bad.png"
    assert reason.startswith("is not a picture that can be read")
    assert (told.of("done"), told.of("failed")) == (GOOD, ["in/bad.png"])
    assert [told[0].event, told[-1].event] == ["begin", "end"]
    assert (told[0].items, told[0].pending, told[-1].done, told[-1].failed) == (5, 5, 4, 1)
    assert result.megapixels == pytest.approx(4 * 6 * (4 + 5 + 6 + 7) / 1e6, abs=1e-3)


def test_what_is_done_is_not_done_again(up, picture):
    """The same call goes on: with what is new, gone from the outputs, or changed since."""
    run(up)
    assert run(up)[1].of("running") == []
    os.utime("in/a.png", (1, 1))
    assert run(up)[1].of("running") == []
    picture("in/b.png", seed=5)
    picture("in/new.png")
    Path("out/sub/c.png").unlink()
    result, told = run(up)
    assert told.of("done") == ["in/b.png", "in/new.png", "in/sub/c.png"]
    assert (result.done, result.made) == (5, 3)
    with Image.open("out/b.png") as large, Image.open("in/b.png") as small:
        assert large.tobytes() == small.resize(large.size, Image.Resampling.NEAREST).tobytes()


def test_failures_are_kept_and_tried_again_when_asked_or_mended(up, picture):
    """A thousand broken files are not read each night; a mended one is seen."""
    run(up)
    _, told = run(up)
    assert (told.of("running"), told.of("failed")) == ([], ["in/bad.png"])
    Path("out/a.png").unlink()
    before = JOURNAL.read_bytes()
    states = {str(item.source): state for item, state, _ in Job(["in"], "out", retry_failed=True).look()}
    assert states == dict.fromkeys(GOOD, "") | {"in/bad.png": "pending"}
    assert JOURNAL.read_bytes() == before
    result, told = run(up, retry_failed=True)
    assert told.of("running") == ["in/bad.png"]
    assert "out/a.png" not in outputs()
    picture("in/bad.png")
    result, told = run(up)
    assert told.of("done") == ["in/a.png", "in/bad.png"]
    assert result.failed == ()


def test_outputs_of_others_are_skipped_replaced_or_left(up):
    """Nothing that was there before is lost without being told so."""
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"older")
    result, _ = run(up)
    assert "--skip-existing" in dict(result.failed)["in/a.png"]
    result, told = run(up, skip_existing=True)
    assert (told.of("skipped"), result.skipped, result.done) == (["in/a.png"], 1, 3)
    assert Path("out/a.png").read_bytes() == b"older"
    result, told = run(up, force=True)
    assert told.of("done") == ["in/a.png"]
    assert Path("out/a.png").read_bytes() != b"older"


def test_an_output_that_appears_meanwhile_is_left(up):
    """Hours lie between the beginning of a job and its last item."""

    def appears(event) -> None:
        if event.event == "begin":
            Path("out/a.png").write_bytes(b"of another program")

    result = Job(["in"], "out").run(up, on_event=appears)
    assert "exists already" in dict(result.failed)["in/a.png"]
    assert Path("out/a.png").read_bytes() == b"of another program"


def test_what_another_input_made_is_left(up, picture):
    """Two runs into one folder, of other folders with the same names."""
    picture("more/a.png", seed=4)
    run(up)
    before = Path("out/a.png").read_bytes()
    result, _ = run(up, "more")
    ((source, reason),) = result.failed
    assert source == "more/a.png"
    assert "was made of" in reason
    assert Path("out/a.png").read_bytes() == before
    assert run(up, "more", force=True)[0].done == 1
    assert Path("out/a.png").read_bytes() != before


def test_an_output_that_was_edited_is_left_when_its_input_changes(up, picture):
    """Hours of retouching are in it."""
    run(up)
    Path("out/a.png").write_bytes(b"retouched")
    assert run(up)[0].done == 4
    picture("in/a.png", seed=8)
    result, _ = run(up)
    assert "in/a.png" in dict(result.failed)
    assert Path("out/a.png").read_bytes() == b"retouched"


def test_another_model_is_noticed(up, make):
    """Half a folder of one model and half of another look alike until somebody looks closely."""
    run(up)
    with Upscaler(make("nearest", name="other.onnx", scale=4), threads=1) as other:
        with pytest.raises(MediaError, match=r"model: 'other.onnx', was 'model.onnx'.*--force") as refused:
            run(other)
        assert "\n" not in str(refused.value)
        assert width("out/a.png") == 12
        assert run(other, remake=True)[0].made == 4
    assert width("out/a.png") == 24
    # What decides how a result looks is told, and how fast it comes is not.
    with Upscaler("other.onnx", threads=2, streams=1, tile=8, halo=1) as tiled:
        assert Job(["in"], "out").changes(tiled) == ["halo: 1, was None", "tile: 8, was 'auto'"]
    make("convolved", name="other.onnx", scale=2)
    with Upscaler("other.onnx", threads=1) as changed:
        (one,) = Job(["in"], "out").changes(changed)
    assert one.startswith("model_sha256: ")


def test_a_run_that_is_stopped_goes_on(up):
    """After the items in hand; nothing is lost and nothing done twice."""
    job = Job(["in"], "out")
    told = Told()

    def stop(event) -> None:
        told(event)
        if event.event == "running":
            job.stop()

    result = job.run(up, on_event=stop)
    assert 0 < result.pending < 5
    assert result.pending == 5 - len(told.of("done")) - len(told.of("failed"))
    again, more = run(up)
    assert (again.done, again.pending) == (4, 0)
    assert sorted(told.of("done") + more.of("done")) == GOOD


def test_two_runs_share_a_job(up, picture):
    """Each item is done by one of them, and each ends when all is done."""
    names = [f"in/{number}.png" for number in range(30)]
    picture(*names)
    both = [Told(), Told()]
    results = []

    def work(told: Told) -> None:
        results.append(Job(["in"], "out").run(up, on_event=told))

    threads = [threading.Thread(target=work, args=(told,)) for told in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.done for result in results] == [34, 34]
    assert sum(result.made for result in results) == 34
    assert sorted(both[0].of("done") + both[1].of("done")) == sorted(GOOD + names)
    # Each tells of the failure, whoever had it in hand.
    assert [told.of("failed") for told in both] == [["in/bad.png"]] * 2


def test_what_a_dead_run_had_in_hand_is_taken_back(up):
    """Its owner's file is not locked any more; what it left half-written is swept, also where nothing is written."""
    run(up)
    with sqlite3.connect(JOURNAL) as database:
        database.execute(
            "UPDATE items SET state = 'running', owner = '.esrgan-00000000abcd' WHERE output = ?",
            (b"sub/c.png",),
        )
    database.close()
    Path("out/.esrgan-00000000abcd").write_bytes(b"")
    Path("out/sub/.esrgan-00000000abce.png").write_bytes(b"half")
    Path("in/sub/c.png").unlink()
    result, _ = run(up, "in/sub/c.png", "in/a.png")
    assert result.pending == 0
    assert outputs() == ALL


DIES = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
# Too little for what is changed, so that some of it is in the file before the end.
database.execute("PRAGMA cache_size = 1")
for number in range(200):
    database.execute("INSERT INTO items (output, source, kind, state) VALUES (?, ?, 'picture', 'pending')",
                     (b"%d.png" % number, b"x" * 9000))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_dead_run_was_writing_down_is_undone(up):
    """Killed while it wrote, it left a journal that could be read no more before it was mended."""
    run(up)
    Path("out/a.png").unlink()
    assert subprocess.run([sys.executable, "-c", DIES, JOURNAL], check=False).returncode == -signal.SIGKILL
    assert Path(f"{JOURNAL}-journal").stat().st_size
    result, told = run(up)
    assert (result.done, told.of("done")) == (4, ["in/a.png"])
    assert outputs() == ALL


def test_a_full_disk_ends_the_job_and_it_goes_on(up, monkeypatch):
    """What follows would fail as well, and none of it is the pictures' fault."""
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MediaError, match="No space left on device"):
        run(up)
    monkeypatch.setattr(os, "fsync", real)
    assert outputs() == set()
    result, told = run(up)
    assert result.done == 4
    assert dict(result.failed).keys() == {"in/bad.png"}
    # No process died of it.
    assert told.of("note") == []


def test_too_little_space_is_told_before(up, monkeypatch):
    """A night's work that ends at midnight is worth a line in the evening."""
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 90, 10))
    _, told = run(up)
    assert ["out has 0.0 left" in str(e.reason) for e in told if e.event == "note"] == [True]


def test_a_file_that_changes_while_it_is_read_is_named(up, monkeypatch, picture):
    """Half of the old one and half of the new one is neither."""
    real = picture_room.read_picture

    def slow(path, **how):
        made = real(path, **how)
        if path.name == "a.png":
            picture("in/a.png", seed=3)
            os.utime(path, (5, 5))
        return made

    monkeypatch.setattr(picture_room, "read_picture", slow)
    result, _ = run(up)
    assert "changed while it was read" in dict(result.failed)["in/a.png"]
    assert outputs() == ALL - {"out/a.png"}
    monkeypatch.setattr(picture_room, "read_picture", real)
    # It is another file than the one that failed, and tried again.
    assert run(up)[0].done == 4


def test_a_bug_in_one_item_stops_no_other(up, monkeypatch):
    """A decoder raises whatever its arithmetic runs into."""
    real = picture_room.read_picture

    def odd(path, **how):
        if path.name == "a.png":
            raise ZeroDivisionError("of a damaged header")
        return real(path, **how)

    monkeypatch.setattr(picture_room, "read_picture", odd)
    result, _ = run(up)
    assert dict(result.failed)["in/a.png"] == "ZeroDivisionError: of a damaged header"
    assert result.done == 3


def test_odd_files_are_named_and_the_rest_goes_on(up, picture):
    """Empty, no file at all, a name that only the file system understands, and one as long as it allows."""
    Path("in/empty.png").write_bytes(b"")
    os.mkfifo("in/pipe.png")
    odd, long = os.fsdecode(b"in/caf\xe9.png"), f"in/{'a' * 251}.png"
    picture(odd, long)
    Path("out/sub").parent.mkdir()
    Path("out/sub").write_bytes(b"a file where a folder is to be")
    result, told = run(up)
    failed = dict(result.failed)
    assert set(failed) == {"in/bad.png", "in/empty.png", "in/pipe.png", "in/sub/c.png", "in/sub/d.bmp"}
    assert "empty" in failed["in/empty.png"]
    assert "no regular file" in failed["in/pipe.png"]
    assert "the folder out/sub cannot be made" in failed["in/sub/c.png"]
    assert Path("out/sub").is_file()
    assert {os.fsdecode(b"out/caf\xe9.png"), f"out/{'a' * 251}.png"} <= outputs()
    assert all(event.as_json().isascii() for event in told)


@pytest.mark.parametrize("content", [b"no database", None], ids=["spoilt", "of another version"])
def test_a_journal_that_cannot_be_read_is_one_line(up, content):
    """It is never thrown away for that."""
    Path("out").mkdir()
    if content is None:
        with sqlite3.connect(JOURNAL) as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
    else:
        JOURNAL.write_bytes(content)
    before = JOURNAL.read_bytes()
    with pytest.raises(MediaError, match=r"out/\.esrgan-job\.sqlite"):
        run(up)
    assert JOURNAL.read_bytes() == before
