"""Ways to quantise side by side, and what quantising a large net costs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from esrgan_deploy._bicubic import bicubic_downscale
from esrgan_deploy.benchmarks import quantisation_cost, quantisation_methods
from esrgan_deploy.export._rrdbnet import RRDBNet


def test_every_way_is_judged_on_the_same_pictures(tmp_path, photographs, rrdb_spec, capsys):
    """A table whose rows saw other pictures compares nothing."""
    torch.manual_seed(0)
    net = RRDBNet(rrdb_spec(blocks=1))
    with torch.no_grad():
        # Random weights hardly reach the picture otherwise.
        net.conv_last.weight.mul_(20)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    for name in ("LR", "HR"):
        (tmp_path / "set" / name).mkdir(parents=True)
    with Image.open(photographs / "astronaut.png") as opened:
        hr = np.asarray(opened)[:98, :96]
    Image.fromarray(hr).save(tmp_path / "set" / "HR" / "a.png")
    Image.fromarray(bicubic_downscale(hr[:96], 4)).save(tmp_path / "set" / "LR" / "a.png")
    ways = ["max, nearest", "equalised, mse, nearest", quantisation_methods.ACTIVATIONS]
    ways += ["equalised, max, compensated"]
    options = [str(tmp_path / "net.pth"), "--calibration", str(photographs), "--sets", str(tmp_path / "set")]
    options += ["--json", str(tmp_path / "ways.json"), "--ways", *ways]
    assert quantisation_methods.main(options) == 0
    figures = json.loads((tmp_path / "ways.json").read_text())
    assert [row["way"] for row in figures["ways"]] == ways
    assert figures["fp32"]["set"]["pictures"] == 1
    for row in figures["ways"]:
        assert 0.8 < row["share"] < 1
        assert row["sets"]["set"]["to_fp32_db"] > 30
    # Each way does something of its own.
    assert len({row["sets"]["set"]["to_fp32_db"] for row in figures["ways"]}) == len(ways)
    nearest, alone = (figures["ways"][place]["sets"]["set"]["to_fp32_db"] for place in (1, 2))
    assert alone > nearest
    shown = capsys.readouterr().out
    assert all(way in shown for way in ways)


def test_ways_are_ones_that_the_export_knows():
    """A row that nobody can ask of the export is of no use."""
    from esrgan_deploy.export.quantisation._options import QuantiseOptions

    for fields in quantisation_methods.WAYS.values():
        QuantiseOptions(**fields)


@pytest.mark.slow
def test_the_cost_of_quantising_is_that_of_the_whole_export(tmp_path, photographs, capsys):
    """Minutes and memory without the search, the verification or the plan would promise too much."""
    options = ["--blocks", "1", "--calibration", str(photographs), "--rounding", "nearest"]
    assert quantisation_cost.main([*options, "--json", str(tmp_path / "cost.json")]) == 0
    figures = json.loads((tmp_path / "cost.json").read_text())
    assert figures["exit status"] == 0
    assert 0.2 < figures["peak_gib"] < 8
    assert figures["quantised"]["convolutions"] > 0
    assert figures["plan"]["dtypes"]["int8"] >= figures["quantised"]["convolutions"]
    assert "of the multiply-adds" in capsys.readouterr().out
