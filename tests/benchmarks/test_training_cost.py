"""The cost of a training."""

import json

import pytest

from esrgan_deploy.benchmarks.training_cost import VARIANTS, main


@pytest.mark.slow
def test_the_cost_is_measured_and_written(tmp_path, capsys):
    """Every figure of the table comes from a training that ran."""
    options = [
        "--features",
        "8",
        "--blocks",
        "1",
        "--growth",
        "4",
        "--batch",
        "2",
        "--crop",
        "8",
        "--steps",
        "3",
    ]
    assert main([*options, "--rounds", "2", "--json", str(tmp_path / "cost.json")]) == 0
    figures = json.loads((tmp_path / "cost.json").read_text())
    ratio = figures["ratio_to_bare_loop"]
    assert len(ratio["trainer"]) == len(ratio["bare"]) == 2
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert figures["variants"].keys() == VARIANTS.keys()
    for cost in figures["variants"].values():
        assert cost["images_per_second"] > 0
        assert 0 <= cost["waited"] < 1
        assert cost["peak_mib"] > 50
    assert figures["loader_images_per_second"]["bicubic"] > figures["loader_images_per_second"]["realesrgan"]
    shown = capsys.readouterr().out
    assert all(name in shown for name in VARIANTS)
