"""A full-size net from the command line to the plan; that it reads alike in every dialect is test_checkpoint's."""

import os
import re
import subprocess
import sys
import time

import pytest
import torch

from esrgan_deploy._manifest import load_manifest
from esrgan_deploy.export.nets import RRDBNet


@pytest.mark.slow
def test_a_23_block_net_goes_from_the_command_line_to_the_plan(rrdb_spec, rrdb_dialects, tmp_path, capsys):
    """What holds for nets of a test's size, in names, memory and the plan's convolutions, may not for a real one."""
    spec = rrdb_spec(features=64, blocks=23, growth=32)
    torch.manual_seed(0)
    torch.save(rrdb_dialects(spec, RRDBNet(spec).state_dict())["esrgan-old"], tmp_path / "net.pth")
    command = [sys.executable, "-m", "esrgan_deploy.export._cli", "net.pth", "-o", "out", "--plan"]
    command += ["--shapes", "1x16x16:1x64x64:1x96x96"]
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    seconds, memory = time.perf_counter() - started, usage.ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\nexported, built and verified in {seconds:.0f} s, {memory:.2f} GiB", flush=True)
    # Memory is repeatable and is held to its bound; time is printed, and belongs to benchmarks.
    assert memory < 4
    assert re.search(r"names of esrgan-old\b", said)
    manifest = load_manifest(tmp_path / "out" / "model.json")
    assert manifest.artefact("model.onnx").verified is True
    assert manifest.artefact("model.fp16.onnx").verified is True
    assert manifest.artefact("model.fp16.plan").dtypes == {"fp16": 351}
