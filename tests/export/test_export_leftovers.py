"""What an export that failed or was killed leaves behind: nothing, at the latest after the next one."""

import dataclasses
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._cli import main
from esrgan_deploy.export.nets import RRDBNet

STATIC = BuildOptions(shapes=ShapeRange.parse("1x16x16"))
KILLS = int(os.environ.get("ESRGAN_KILLS", "4"))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_export_leaves_nothing(rrdb_spec, tmp_path, monkeypatch, capsys):
    """A folder that holds half an export, or none of it, would be taken for one."""
    net = RRDBNet(rrdb_spec(scale=2, blocks=1))
    net.conv_last.bias.data[:] = float("nan")
    torch.save(net.state_dict(), tmp_path / "nan.pth")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    quick = ["--no-plan", "--precision", "fp32", "--shapes", "16x16"]
    assert main([str(tmp_path / "nan.pth"), "-o", "new/out", *quick]) == 1
    assert "NaN" in capsys.readouterr().err
    assert _names(tmp_path / "work") == []


@pytest.mark.slow
def test_an_interrupted_search_leaves_nothing_beside_the_export_and_goes_on(
    tiny_checkpoint, photographs, tmp_path, monkeypatch
):
    """Its measurements lay in a new folder that held nothing else."""
    monkeypatch.setenv("ESRGAN_DEPLOY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    quick = ExportOptions(precisions=("int8",), plan=False, build=STATIC)
    asked = dataclasses.replace(
        quick.quantise, calibration=photographs, method="max", rounding="nearest", equalise=False
    )
    lines = []

    def say(line):
        lines.append(line)
        if "each quantised alone" in line or "goes on after" in line:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            export_model(
                tiny_checkpoint,
                tmp_path / "work" / "out",
                dataclasses.replace(quick, quantise=asked),
                say=say,
            )
        assert _names(tmp_path / "work") == []
    assert "goes on after" in lines[-1]


def test_an_export_beside_another_is_not_taken_for_a_leftover(tiny_export, tmp_path):
    """Of two exports into one folder, the second would remove what the first is making."""
    options = ExportOptions(precisions=("fp32",), plan=False, build=STATIC)
    there = tmp_path / "first"
    there.mkdir(mode=0o750)
    (there / "notes.txt").write_text("mine")
    number, begun = there.stat().st_ino, []

    def say(line):
        if not begun:
            begun.append(line)
            export_model(tiny_export / "model.onnx", tmp_path / "second", options)

    export_model(tiny_export / "model.onnx", there, options, say=say)
    assert _names(tmp_path) == ["first", "second"]
    assert _names(there) == sorted([*_names(tmp_path / "second"), "notes.txt"])
    # A folder that was there stays whose it is, and readable to whom it was.
    assert (there.stat().st_ino, there.stat().st_mode & 0o777) == (number, 0o750)


@pytest.mark.slow
def test_killed_exports_leave_no_folder_after_the_next(fork, tiny_export, tmp_path):
    """Each kill would leave a folder of the model's size for ever. ``ESRGAN_KILLS=100`` kills more often."""
    made = tmp_path / "made"
    made.mkdir()

    def start(name: str) -> Any:
        # Of a graph, which is not traced.
        asked = [tiny_export / "model.onnx", "-o", made / name, "--no-plan", "--precision", "fp16"]
        return fork("esrgan_deploy.export._cli", [*asked, "--shapes", "16x16"], cwd=tmp_path)

    def working(before: list[str]) -> int:
        """Files in the folder that is being made, and -1 before there is one."""
        new = [made / name for name in _names(made) if name.startswith(".") and name not in before]
        return max((len(list(folder.iterdir())) for folder in new if folder.is_dir()), default=-1)

    assert start("whole").wait() == 0
    listed, moments, kept, left = _names(made / "whole"), random.Random(0), ["whole"], 0
    for turn in range(KILLS):
        before, process = _names(made), start(f"killed-{turn}")
        # With the folder empty, with some of its files there, with all of them; and a moment later.
        while process.poll() is None and working(before) < turn % len(listed):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        there = _names(made)
        left += any(name.startswith(".") for name in there)
        if f"killed-{turn}" in there:
            kept.append(f"killed-{turn}")
            assert _names(made / f"killed-{turn}") == listed
    assert start("last").wait() == 0
    assert _names(made) == sorted([*kept, "last"])
    assert left > 0
    assert _names(tmp_path) == ["made"]
