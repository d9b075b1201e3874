"""The graph forms are one net, and the figures are of them."""

import json

import pytest
import torch

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.benchmarks.graph_forms import main
from esrgan_deploy.export._rrdbnet import RRDBNet

SPEC = ModelSpec(
    architecture="rrdbnet",
    scale=2,
    in_channels=3,
    out_channels=3,
    features=6,
    blocks=1,
    growth=4,
    source_sha256="",
)


@pytest.mark.slow
def test_the_command_measures_every_form(tmp_path, capsys):
    """The default is chosen by these figures."""
    torch.manual_seed(0)
    torch.save(RRDBNet(SPEC).state_dict(), tmp_path / "net.pth")
    path = tmp_path / "forms.json"
    options = ["--side", "32", "--seconds", "0.2", "--threads", "1", "--quantised", "--json", str(path)]
    assert main([str(tmp_path / "net.pth"), *options]) == 0
    figures = json.loads(path.read_text())
    names = {"flat", "nested", "nested, 0.2 folded"}
    assert figures["forms"].keys() == figures["difference"].keys() == names
    assert figures["difference"]["nested"] == 0.0
    assert max(figures["difference"].values()) < 1e-5 * max(1.0, figures["largest_output"])
    forms = figures["forms"]
    assert forms["nested"]["bytes_per_pixel"] < forms["flat"]["bytes_per_pixel"]
    quantised = figures["quantised"]
    assert len(quantised) == 2 * 2 * 4
    # Convolutions of 4 and 6 channels among them.
    assert quantised["fp8, per tensor, all"]["convolutions"] == {"fp8": 20}
    assert quantised["int8, per channel, body"]["convolutions"] == {"fp16": 5, "int8": 15}
    assert 0.5 < quantised["fp8, per tensor, body"]["share"] < quantised["fp8, per tensor, all"]["share"] == 1
    times = figures["times"]["processor"]
    assert "ONNX Runtime" in times["on"]
    assert times["forms"].keys() == names
    assert set(times["forms"]["flat"]) == {"seconds", "of_flat", "low", "high"}
    assert times["forms"]["flat"]["of_flat"] == 1.0
    assert len({len(form["seconds"]) for form in times["forms"].values()}) == 1
    shown = capsys.readouterr().out
    assert all(name in shown for name in {*names, *quantised})
