"""esrgan-bench measures what it says."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from esrgan_deploy._manifest import load_manifest, save_manifest
from esrgan_deploy._metrics import psnr, ssim
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.benchmarks._measure import Timing, measure
from esrgan_deploy.benchmarks._quality import measure_quality
from esrgan_deploy.benchmarks.graph_forms import traffic_of_forms
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._rrdbnet import RRDBNet

SPEC = ModelSpec(
    architecture="rrdbnet",
    scale=4,
    in_channels=3,
    out_channels=3,
    features=8,
    blocks=1,
    growth=4,
    source_sha256="",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    torch.manual_seed(0)
    torch.save(RRDBNet(SPEC).state_dict(), folder / "net.pth")
    options = ExportOptions(plan=True, build=BuildOptions(shapes=ShapeRange.parse("1x16x16")))
    export_model(folder / "net.pth", folder / "out", options)
    return folder / "out"


def _bench(*arguments):
    command = [sys.executable, "-m", "esrgan_deploy.benchmarks._cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_graph_is_timed_with_its_parity_beside_it(made, tmp_path):
    """A speed without its proof is what the field already has."""
    result = _bench(
        made / "model.onnx",
        made / "model.fp16.onnx",
        "--shape",
        "2x24x16",
        "--seconds",
        "0.3",
        "--json",
        tmp_path / "r.json",
    )
    assert result.returncode == 0, result.stderr
    assert "verified, at least" in result.stdout
    assert "model.fp16.onnx is" in result.stdout
    data = json.loads((tmp_path / "r.json").read_text())
    for row in data["results"]:
        times = row["timing"]["values"]
        assert len(times) >= 5
        assert row["timing"]["warmups"]
        median = float(np.median(times))
        pixels = 2 * 24 * 16
        assert row["megapixels_per_second"] == pytest.approx(pixels / median / 1e6)
        assert row["teraflops"] == pytest.approx(pixels * SPEC.flops_per_pixel / median / 1e12)
        assert row["memory"] > 2**20
    assert data["environment"]["cores"]


def test_a_manifest_of_another_file_is_no_proof(made, tmp_path):
    """Figures of the model before would stand beside the speed of this one."""
    for name in ("model.onnx", "model.json"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    manifest = load_manifest(tmp_path / "model.json")
    (tmp_path / "model.onnx").write_bytes((made / "model.fp16.onnx").read_bytes())
    save_manifest(manifest, tmp_path / "model.json")
    result = _bench(tmp_path / "model.onnx", "--shape", "8x8", "--seconds", "0.1")
    assert result.returncode == 0, result.stderr
    assert "its sha256 differs" in result.stdout
    assert "verified, at least" not in result.stdout


def test_a_plan_without_a_gpu_is_one_line_and_exit_1(made):
    """Raw TensorRT text is what users complain of."""
    from esrgan_deploy._flavour import gpu_is_usable

    if gpu_is_usable():
        pytest.skip("there is a GPU here")
    result = _bench(made / "model.fp16.plan")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "no NVIDIA GPU" in line
    assert "model.fp16.onnx" in line


@pytest.mark.parametrize("arguments", [["--shape", "8"], ["--seconds", "0"], []])
def test_a_usage_error_is_exit_2(made, arguments):
    """Scripts tell a refusal from a wrong flag by it."""
    models = [made / "model.onnx"] if arguments else []
    assert _bench(*models, *arguments).returncode == 2


def test_measure_takes_turns():
    """What disturbs the machine for a second must disturb all alike."""
    order = []
    measure([lambda: order.append("a"), lambda: order.append("b")], seconds=1e-4, least=5, most_warmups=1)
    counted = order[2:] if order[:2] == ["a", "b"] else order
    pairs = list(zip(counted[-10::2], counted[-9::2], strict=True))
    assert set(pairs) == {("a", "b")}


def test_measure_measures():
    """A clock read at the wrong moment would give zero, or the warm-up."""
    (timing,) = measure([lambda: time.sleep(0.02)], seconds=0.01, least=3, most_warmups=2)
    assert len(timing.values) >= 3
    assert min(timing.values) >= 0.02


def test_percentiles_are_interpolated():
    """p95 of a handful of values is not the largest."""
    timing = Timing(warmups=(), values=(4.0, 1.0, 3.0, 2.0, 5.0))
    assert timing.median == 3.0
    assert timing.percentile(0.95) == pytest.approx(4.8)
    assert timing.spread == pytest.approx((4.0 - 2.0) / 3.0)


def test_metrics_are_scikit_images(made):
    """A window or a border of our own would make every figure incomparable."""
    metrics = pytest.importorskip("skimage.metrics")
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (40, 50, 3)).astype(float)
    b = np.clip(a + random.normal(0, 9, a.shape), 0, 255)
    theirs = metrics.structural_similarity(
        a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(a, b) == pytest.approx(theirs, abs=1e-12)
    assert psnr(a, b) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)


def test_quality_reproduces_the_published_figures(assets, tmp_path):
    """Set5 of the official anime model from the fp16 graph: 28.23 dB and 0.8268."""
    options = ExportOptions(plan=False, build=BuildOptions(shapes=ShapeRange.parse("1x16x16")))
    export_model(assets / "models" / "realesr-animevideov3.pth", tmp_path / "out", options)
    quality = measure_quality(tmp_path / "out" / "model.fp16.onnx", assets / "images" / "Set5" / "x4")
    assert "rounded to fp16" in quality.arithmetic
    assert quality.psnr_y == pytest.approx(28.2325, abs=0.02)
    assert quality.ssim_y == pytest.approx(0.8268, abs=0.0005)
    assert quality.psnr_rgb == pytest.approx(25.7254, abs=0.02)


def test_nested_concats_move_a_fifth_fewer_bytes_than_flat_ones():
    """Without that the rewrite would have no reason to exist; and it must not change a bit."""
    figures = traffic_of_forms()
    forms = figures["forms"]
    assert figures["difference"]["nested"] == 0.0
    for name in ("nested", "nested, 0.2 folded"):
        assert forms[name]["bytes_per_pixel"] <= 0.8 * forms["flat"]["bytes_per_pixel"]
