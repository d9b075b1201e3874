"""The wrapper's own cost and its leaks are measured against the same work."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy.benchmarks import overhead as module
from esrgan_deploy.benchmarks.leak import WAYS, growth_of_ways, slope
from esrgan_deploy.benchmarks.leak import main as leak_main
from esrgan_deploy.benchmarks.overhead import allowed, main, overhead


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A net of three small convolutions."""
    onnx = pytest.importorskip("onnx")
    helper, folder = onnx.helper, tmp_path_factory.mktemp("overhead")
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.2, shape).astype(np.float32) for shape in ((8, 3, 3, 3), (12, 8, 3, 3))]
    nodes = [
        helper.make_node("Conv", ["input", "w0"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.2),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["c"], ["output"], blocksize=2, mode="CRD"),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, f"{name}h", f"{name}w"])
        for name in ("input", "output")
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        ends[:1],
        ends[1:],
        [onnx.numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx"


def test_the_command_prints_ratio_and_microseconds_of_each_size(net, tmp_path, capsys):
    """A ratio alone says nothing of a tiny frame, and microseconds alone nothing of a large one."""
    options = ["--sizes", "16x16", "50x40", "--tile", "32", "--halo", "4", "--threads", "1"]
    status = main([str(net), *options, "--seconds", "0.2", "--json", str(tmp_path / "o.json")])
    figures = json.loads((tmp_path / "o.json").read_text())
    small, large = figures["sizes"]
    assert (small["size"], small["tiles"]) == ([16, 16], 1)
    assert large["size"] == [50, 40]
    assert large["tiles"] >= 4
    for size in figures["sizes"]:
        seconds = size["seconds"]
        assert len(seconds["upscale"]) == len(seconds["bare"]) == len(seconds["session"]) >= 9
        pairs = list(zip(seconds["upscale"], seconds["bare"], strict=True))
        assert size["over_bare"]["median"] == pytest.approx(statistics.median(a / b for a, b in pairs))
        assert size["microseconds"]["median"] == pytest.approx(
            statistics.median((a - b) * 1e6 for a, b in pairs), abs=1e-6
        )
        assert size["processor_microseconds"]["median"] != size["microseconds"]["median"]
        assert size["over_bare"]["low"] <= size["over_bare"]["median"] <= size["over_bare"]["high"]
    # Pixels are converted in the one and not in the other.
    assert statistics.median(small["seconds"]["bare"]) > statistics.median(small["seconds"]["session"])
    assert status == (0 if small["within"] and large["within"] else 1)
    shown = capsys.readouterr().out
    assert "16x16" in shown
    assert "50x40" in shown
    assert f"{small['over_bare']['median']:.4f}" in shown


def test_figures_are_written_whoever_reads_the_table(net, tmp_path):
    """Minutes of measurement were lost with the reader of a line about them."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "esrgan_deploy.benchmarks.overhead", str(net), "--sizes", "16x16"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--seconds", "0.05", "--json", str(figures)], stdout=full, timeout=120
        )
    assert done.returncode in (0, 1)
    assert json.loads(figures.read_text())["sizes"]


def test_a_loop_that_does_other_work_is_refused(net, monkeypatch):
    """Against a loop that skips a conversion, any wrapper looks slow."""
    monkeypatch.setattr(module, "network_to_pixels", lambda made, target, info: target.fill(0))
    with pytest.raises(BenchmarkError, match="different pictures"):
        overhead(net, [(16, 16)], seconds=0.01)


def test_the_bar_is_the_larger_of_share_and_microseconds():
    """Three hundredths of a tiny frame is less than a thread takes to wake."""
    assert allowed(1.0) == pytest.approx(0.03)
    assert allowed(1e-4) == pytest.approx(50e-6)


def test_a_leak_is_the_slope_of_the_readings():
    """The difference of the ends would take one spike for a leak."""
    rising = [(calls, 1000 + 3 * calls) for calls in range(0, 1000, 10)]
    assert slope(rising) == pytest.approx(3)
    assert abs(slope([(calls, 5000 + calls % 20) for calls in range(0, 1000, 10)])) < 0.01
    # One step of the heap in the middle is none; a step every hundred calls is one.
    assert slope([(calls, 700_000 * (calls > 400)) for calls in range(0, 1000, 10)]) == 0
    assert slope([(calls, calls // 100 * 4096) for calls in range(0, 1000, 10)]) == pytest.approx(41, rel=0.1)


def test_every_way_is_called_as_often_as_asked(net, tmp_path, capsys):
    """A generator that ends early would show no growth whatever leaks."""
    found = growth_of_ways(net, calls=120)
    assert found.keys() == WAYS.keys() == {"upscale", "submit", "stream"}
    for way in found.values():
        assert way["readings"][0][0] == 0
        assert way["readings"][-1][0] == 120
        assert way["readings"][-1][1] > 2**20
        assert way["files"][0] == way["files"][1]
        assert way["threads"][0] == way["threads"][1]
    status = leak_main([str(net), "--calls", "100", "--json", str(tmp_path / "leak.json")])
    ways = json.loads((tmp_path / "leak.json").read_text())["ways"]
    assert status == int(any(way["bytes_per_1000_calls"] > 16384 for way in ways.values()))
    assert "KiB per 1,000 calls" in capsys.readouterr().out


@pytest.mark.slow
def test_three_thousand_calls_leak_nothing(net):
    """A buffer that is kept for each call stops a service after a day."""
    for name, way in growth_of_ways(net, calls=3000).items():
        # A picture that is kept weighs 800 bytes at the least.
        assert way["bytes_per_1000_calls"] < 400 * 1000, name
