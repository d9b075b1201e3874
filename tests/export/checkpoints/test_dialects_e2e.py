"""A full-size net from the command line to the plan; that it reads alike in every dialect is test_checkpoint's."""

import re

import pytest
import torch

from esrgan_deploy._manifest import load_manifest
from esrgan_deploy.export.nets import RRDBNet


@pytest.mark.slow
def test_a_23_block_net_goes_from_the_command_line_to_the_plan(rrdb_spec, rrdb_dialects, fork, tmp_path):
    """What holds for nets of a test's size, in names, memory and the plan's convolutions, may not for a real one."""
    spec = rrdb_spec(features=64, blocks=23, growth=32)
    torch.manual_seed(0)
    torch.save(rrdb_dialects(spec, RRDBNet(spec).state_dict())["esrgan-old"], tmp_path / "net.pth")
    command = ["net.pth", "-o", "out", "--plan", "--shapes", "1x16x16:1x32x32:1x48x48"]
    done = fork("esrgan_deploy.export._cli", command, cwd=tmp_path)
    assert done.wait() == 0, done.stdout + done.stderr
    assert done.memory < 4
    assert re.search(r"names of esrgan-old\b", done.stderr)
    manifest = load_manifest(tmp_path / "out" / "model.json")
    assert manifest.artefact("model.onnx").verified is True
    assert manifest.artefact("model.fp16.onnx").verified is True
    assert manifest.artefact("model.fp16.plan").dtypes == {"fp16": 351}
