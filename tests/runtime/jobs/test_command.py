"""esrgan-upscale on folders and lists: what it prints, what it returns, and when it stops."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esrgan_deploy.runtime._cli import main

CODE = "import sys; from esrgan_deploy.runtime._cli import main; sys.exit(main())"


@pytest.fixture
def model(here, make) -> list[str]:
    """The options that name a model whose pixels become squares."""
    return ["--model", str(make("nearest", scale=2)), "--threads", "1"]


def test_a_folder_is_exit_3_where_some_failed(model, capsys):
    """The lines say what was done, and the summary lists what was not; a script sees it by the status."""
    assert main(["in", "-o", "out", *model]) == 3
    printed = capsys.readouterr()
    *lines, last = printed.out.splitlines()
    assert sorted(line.partition(" ")[2].rpartition(",")[0] for line in lines) == [
        "out/a.png: 6x4 -> 12x8", "out/b.png: 6x5 -> 12x10", "out/sub/c.png: 6x6 -> 12x12",
        "out/sub/d.bmp: 6x7 -> 12x14",
    ]  # fmt: skip
    assert {line.partition(" ")[0] for line in lines} < {f"[{n}/5]" for n in range(1, 6)}
    assert last.startswith("out: 4 done (4 now), 1 failed, 0 skipped; 0.00 megapixels in ")
    assert printed.err.splitlines()[-1].startswith("esrgan-upscale: failed: in/bad.png: is not a picture")
    Path("in/bad.png").unlink()
    assert main(["in", "-o", "out", *model]) == 0
    assert capsys.readouterr().out.startswith("out: 4 done (0 now), 0 failed")


def test_events_are_json_one_a_line(model, capsys):
    """The same as the events of a job, and nothing else on stdout."""
    assert main(["in", "-o", "out/", "--json", *model]) == 3
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["begin", "end"]
    assert sorted(one["source"] for one in events if one["event"] == "done") == [
        "in/a.png", "in/b.png", "in/sub/c.png", "in/sub/d.bmp",
    ]  # fmt: skip
    (failed,) = (one for one in events if one["event"] == "failed")
    assert set(failed) == {"event", "source", "output", "reason", "size"}
    assert events[-1]["failed"] == 1


def test_every_event_is_documented(model, capsys):
    """Whoever reads them reads the page."""
    page = (Path(__file__).parents[3] / "docs" / "jobs.md").read_text(encoding="utf-8")
    main(["in", "-o", "out", "--json", *model])
    main(["in", "-o", "out", "--json", "--dry-run"])
    for line in capsys.readouterr().out.splitlines():
        event = json.loads(line)
        (row,) = re.findall(rf"^\| `{event['event']}` \|.*", page, re.MULTILINE)
        assert {f"`{name}`" for name in event} - {"`event`"} <= set(re.findall(r"`\w+`", row)), event


def test_a_dry_run_changes_nothing(here, capsys):
    """No folder, no journal, no model; it says what goes where."""
    assert main(["in", "-o", "out", "--dry-run", "--model", "gone.onnx"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "in/sub/d.bmp -> out/sub/d.bmp" in lines
    assert lines[-1] == "5 pending; nothing was done"
    assert not Path("out").exists()


def test_options_of_folders_need_a_folder(here, capsys):
    """Silently without effect they would mislead."""
    for given in (["--dry-run"], ["--json"], ["--skip-existing"], ["--include", "*.png"], ["--retry-failed"]):
        assert main(["in/a.png", *given]) == 2
        assert f"{given[0]} is for folders and lists" in capsys.readouterr().err
    for given in (["in"], ["in/a.png", "in/b.png"], ["in/*.png"], ["in/a.png", "-", "-o", "out"]):
        assert main(given) == 2
        assert "-o FOLDER" in capsys.readouterr().err


def test_another_model_is_refused_without_a_terminal(model, capsys):
    """A script is not asked; it is told what to do, and nothing is changed."""
    main(["in", "-o", "out", *model])
    capsys.readouterr()
    assert main(["in", "-o", "out", *model, "--tile", "8", "--halo", "1"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "halo: 1, was None; tile: 8, was 'auto'" in line
    assert main(["in", "-o", "out", *model, "--tile", "8", "--halo", "1", "--force"]) == 3
    assert "4 done (4 now)" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "status"), [("y", 3), ("n", 1)])
def test_another_model_is_asked_about_on_a_terminal(model, answer, status):
    """Whoever sits there decides; the bar is shown there as well."""
    main(["in", "-o", "out", *model])
    leader, follower = pty.openpty()
    os.write(leader, f"{answer}\n".encode())
    command = [sys.executable, "-c", CODE, "in", "-o", "out", *model, "--tile", "8", "--halo", "1"]
    terminal = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run(
        command, stdin=follower, stderr=follower, stdout=subprocess.PIPE, check=False, env=terminal
    )
    os.close(follower)
    seen = os.read(leader, 65536).decode()
    os.close(leader)
    assert done.returncode == status
    assert "Make all of it again with these? [y/N]" in seen
    assert ("5 of 5" in seen) == (answer == "y")
    assert (b"4 done (4 now)" in done.stdout) == (answer == "y")


def _interrupted(arguments: list[str], times: int) -> tuple[int, list[dict], str]:
    """Run the command, press Ctrl-C when two items are in hand, and return how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "in", "-o", "out", "--json", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    told = [process.stdout.readline() for _ in range(3)]
    said = ""
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        said += process.stderr.readline()
    rest, more = process.communicate(timeout=60)
    return process.returncode, [json.loads(line) for line in [*told, *rest.splitlines()]], said + more


def test_ctrl_c_ends_after_the_pictures_in_hand(model):
    """And the same command goes on."""
    for number in range(100):
        shutil.copy("in/a.png", f"in/{number:03}.png")
    status, events, said = _interrupted(model, 1)
    assert status == 130
    assert "Ctrl-C again ends it at once" in said
    assert events[-1]["event"] == "end"
    assert 0 < events[-1]["done"] < 104
    assert f"{events[-1]['pending']} are left" in said
    states = [event["event"] for event in events]
    assert (
        states.count("running")
        == states.count("done") + states.count("failed")
        == events[-1]["done"] + events[-1]["failed"]
    )
    assert main(["in", "-o", "out", *model]) == 3
    assert len(list(Path("out").rglob("[!.]*.*"))) == 104


def test_ctrl_c_twice_ends_at_once(model, picture):
    """What was in hand is made again by the next run, which sweeps what was left."""
    for number in range(3):
        Image.new("RGB", (120, 120)).save(f"in/0{number}.png")
    slow = [*model, "--tile", "4", "--halo", "1"]
    status, events, said = _interrupted(slow, 2)
    assert status == 130
    assert said.splitlines()[1:] == ["esrgan-upscale: stopped by Ctrl-C; nothing was left half-written"]
    assert "end" not in [event["event"] for event in events]
    assert main(["in", "-o", "out", *slow]) == 3
    assert len(list(Path("out").rglob("[!.]*.*"))) == 7
    assert [path.name for path in Path("out").rglob(".*")] == [".esrgan-job.sqlite"]


def test_standard_input_and_output(model, capsysbinary, monkeypatch):
    """A picture in a pipe of other programs; what is said goes beside it."""
    given = io.TextIOWrapper(io.BytesIO(Path("in/a.png").read_bytes()))
    monkeypatch.setattr(sys, "stdin", given)
    assert main(["-", "-o", "-", *model]) == 0
    printed = capsysbinary.readouterr()
    with Image.open(io.BytesIO(printed.out)) as made, Image.open("in/a.png") as small:
        assert made.format == "PNG"
        np.testing.assert_array_equal(np.asarray(made), np.asarray(small).repeat(2, axis=0).repeat(2, axis=1))
    assert printed.err.startswith(b"-: 6x4 -> 12x8 with model.onnx")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no picture")))
    assert main(["-", "-o", "big.png", *model]) == 1
    assert capsysbinary.readouterr().err.startswith(b"esrgan-upscale: standard input is not a picture")
    assert not Path("big.png").exists()


def test_an_unwritable_folder_is_one_line(model, capsys):
    """Before the model is opened where it can be known."""
    Path("file").write_bytes(b"")
    assert main(["in", "-o", "file/out", *model]) == 1
    assert re.fullmatch(
        r"esrgan-upscale: file/out cannot be made a folder \(.*\).*\n", capsys.readouterr().err
    )


def test_a_bar_shows_a_name_and_does_not_obey_it(model, picture):
    """Brackets are markup to what draws the bar."""
    picture("odd/[red]x[/].png")
    leader, follower = pty.openpty()
    terminal = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    command = [sys.executable, "-c", CODE, "odd", "-o", "out", *model]
    seen = bytearray()

    def read() -> None:
        # A terminal that nobody writes to any more is an error to read.
        with contextlib.suppress(OSError):
            while True:
                seen.extend(os.read(leader, 65536))

    reader = threading.Thread(target=read)
    reader.start()
    subprocess.run(command, stderr=follower, stdout=subprocess.DEVNULL, check=True, env=terminal)
    os.close(follower)
    reader.join()
    os.close(leader)
    assert b"odd/[red]x[/].png" in seen
    assert Path("out/[red]x[/].png").is_file()
