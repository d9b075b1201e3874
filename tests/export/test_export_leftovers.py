"""What an export that failed or was killed leaves behind: nothing, at the latest after the next one."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._cli import main
from esrgan_deploy.export._rrdbnet import RRDBNet

KILLS = int(os.environ.get("ESRGAN_KILLS", "4"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, rrdb_spec) -> Path:
    """A tiny RRDBNet."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(RRDBNet(rrdb_spec(scale=2, blocks=1)).state_dict(), path)
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_export_leaves_nothing(rrdb_spec, tmp_path, monkeypatch, capsys):
    """A folder that holds half an export, or none of it, would be taken for one."""
    net = RRDBNet(rrdb_spec(scale=2, blocks=1))
    net.conv_last.bias.data[:] = float("nan")
    torch.save(net.state_dict(), tmp_path / "nan.pth")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main([str(tmp_path / "nan.pth"), "-o", "new/out", "--no-plan", "--precision", "fp32"]) == 1
    assert "NaN" in capsys.readouterr().err
    assert _names(tmp_path / "work") == []


@pytest.mark.slow
def test_an_interrupted_search_leaves_nothing_beside_the_export_and_goes_on(
    checkpoint, photographs, tmp_path, monkeypatch
):
    """Its measurements lay in a new folder that held nothing else."""
    monkeypatch.setenv("ESRGAN_DEPLOY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    quick = ExportOptions(precisions=("int8",), plan=False)
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
                checkpoint, tmp_path / "work" / "out", dataclasses.replace(quick, quantise=asked), say=say
            )
        assert _names(tmp_path / "work") == []
    assert "goes on after" in lines[-1]


def test_an_export_beside_another_is_not_taken_for_a_leftover(tiny_export, tmp_path):
    """Of two exports into one folder, the second would remove what the first is making."""
    options = ExportOptions(precisions=("fp32",), plan=False)
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
def test_killed_exports_leave_no_folder_after_the_next(checkpoint, tmp_path):
    """Each kill would leave a folder of the model's size for ever. ``ESRGAN_KILLS=100`` kills more often."""
    code = "import sys; from esrgan_deploy.export._cli import main; sys.exit(main())"

    def start(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, str(checkpoint), "-o", str(tmp_path / "made" / name)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(
            [*command, "--no-plan", "--precision", "fp16"], cwd=tmp_path, start_new_session=True, **quiet
        )

    (tmp_path / "made").mkdir()
    begun = time.monotonic()
    assert start("whole").wait() == 0
    whole = time.monotonic() - begun
    listed = _names(tmp_path / "made" / "whole")
    moments, kept, left = random.Random(0), ["whole"], 0
    for turn in range(KILLS):
        process = start(f"killed-{turn}")
        try:
            # Not before Python has begun: there is nothing to leave.
            process.wait(moments.uniform(0.2, 1.05) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        there = _names(tmp_path / "made")
        left += any(name.startswith(".") for name in there)
        if f"killed-{turn}" in there:
            kept.append(f"killed-{turn}")
            assert _names(tmp_path / "made" / f"killed-{turn}") == listed
    assert start("last").wait() == 0
    assert _names(tmp_path / "made") == sorted([*kept, "last"])
    assert left > 0
    assert _names(tmp_path) == ["made"]
