"""The bench of INT8 on processors measures the graphs that are exported."""

import json

import pytest
import torch

from esrgan_deploy.benchmarks import int8_cpu
from esrgan_deploy.export._rrdbnet import RRDBNet


def test_vnni_is_read_from_the_flags(tmp_path):
    """The bar is judged by it: read wrongly, a machine without VNNI fails or one with it is excused."""
    for flags, wanted in (("avx2 avx512_vnni", True), ("avx2 avx_vnni", True), ("avx2 avx512f", False)):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
        assert int8_cpu.has_vnni(tmp_path / "cpuinfo") is wanted
    assert int8_cpu.has_vnni(tmp_path / "none") is None


@pytest.mark.parametrize("vnni", [True, False])
def test_both_graphs_are_timed_and_the_bar_holds_only_with_vnni(
    rrdb_spec, tmp_path, capsys, monkeypatch, vnni
):
    """Speed without parity beside it shows nothing, and neither does a bar that is never applied."""
    torch.manual_seed(0)
    torch.save(RRDBNet(rrdb_spec(features=16, growth=16, blocks=1)).state_dict(), tmp_path / "net.pth")
    monkeypatch.setattr(int8_cpu, "has_vnni", lambda: vnni)
    monkeypatch.setattr(int8_cpu, "BAR", 1e9)
    command = [str(tmp_path / "net.pth"), "--shape", "1x16x16", "--seconds", "0.1", "--threads", "1"]
    if not vnni:
        command += ["--budget", "0.3"]
    assert int8_cpu.main([*command, "--json", str(tmp_path / "f.json")]) == int(vnni)
    figures = json.loads((tmp_path / "f.json").read_text())
    assert (figures["asked"]["search"], figures["asked"]["budget"]) == ((False, 0.1) if vnni else (True, 0.3))
    assert figures["of"] == 21
    assert figures["convolutions"] == 20 or not vnni
    assert figures["measured"]["to_fp32_db"] > 35
    seconds = figures["seconds"]["onnxruntime"]
    assert len(seconds["fp32"]) == len(seconds["int8-cpu"]) >= 5
    assert "dB" in capsys.readouterr().out
