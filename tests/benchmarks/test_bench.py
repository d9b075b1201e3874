"""esrgan-bench measures what it says."""

import contextlib
import dataclasses
import json
import time
import types

import numpy as np
import pytest

from esrgan_deploy._manifest import load_manifest, save_manifest
from esrgan_deploy._metrics import psnr, ssim
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.benchmarks import _options
from esrgan_deploy.benchmarks._cli import main
from esrgan_deploy.benchmarks.measure import Timing, measure, measure_quality
from esrgan_deploy.benchmarks.peers._peers import OPENERS
from esrgan_deploy.benchmarks.record import Row, difference_of, known_of
from esrgan_deploy.engines import BuildOptions, ShapeRange, built_fields, engine_from_onnx
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.runtime import SessionOptions, open_session

# Of the net that `tiny_export` exports.
SPEC = ModelSpec(
    architecture="rrdbnet", scale=4, in_channels=3, out_channels=3, features=8, blocks=1, growth=4,
    source_sha256="",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tiny_export):
    return tiny_export


@pytest.fixture
def run_bench(capsys):
    """Run the command in this process."""

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = stopped.code
        said = capsys.readouterr()
        return types.SimpleNamespace(returncode=status, stdout=said.out, stderr=said.err)

    return run


@pytest.mark.slow
def test_a_graph_is_timed_with_its_parity_beside_it(made, tmp_path, run_bench):
    """A speed without its proof is what the field already has."""
    options = ["--shape", "2x24x16", "--seconds", "0.3", "--json", tmp_path / "r.json"]
    result = run_bench(made / "model.onnx", made / "model.fp16.onnx", *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("verified, at least") == 2
    assert "model.fp16.onnx is" in result.stdout
    assert "levels from model.onnx" in result.stdout
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["schema"] == 2
    assert [row["precision"] for row in data["results"]] == ["fp32", "fp16"]
    # A fast graph that computes something else must not look fast.
    exact, half = (row["difference"] for row in data["results"])
    assert exact == 0 < half < 1 / 255
    peak = data["peaks"]["compute"]["fp32"]["flops"]
    for row in data["results"]:
        taken = row["timings"]["latency"]
        assert len(taken["values"]) >= 5
        assert taken["warmups"]
        assert (taken["p50"], taken["p95"]) == pytest.approx(np.percentile(taken["values"], (50, 95)))
        median, pixels = float(np.median(taken["values"])), 2 * 24 * 16
        assert taken["pictures_per_second"] == pytest.approx(2 / median)
        assert taken["megapixels_per_second"] == pytest.approx(pixels / median / 1e6)
        flops = pixels * SPEC.flops_per_pixel / median
        assert taken["teraflops"] == pytest.approx(flops / 1e12)
        assert taken["compute_share"] == pytest.approx(flops / peak)
        assert row["memory"]["host"] > row["memory"]["host_before"] > 2**20
        assert row["parity"]
    rounds = [row["timings"]["latency"]["values"] for row in data["results"]]
    (ratio,) = data["ratios"]
    assert ratio["median"] == pytest.approx(np.median(np.divide(*rounds)))
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert data["environment"]["cores"]
    assert set(data["state"]) == {"before", "during", "after"}


def test_a_processor_is_not_given_a_second_identical_number(made, tmp_path, run_bench):
    """Upload and download of nothing, printed as a figure, would be an invention."""
    result = run_bench(
        made / "model.onnx", "--shape", "8x8", "--seconds", "0.1", "--no-peaks", "--json", tmp_path / "r.json"
    )
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert list(row["timings"]) == ["latency"]
    assert "the processor is the device" in result.stdout
    assert "one batch at a time" in result.stdout
    assert "device p50 ms" not in result.stdout
    assert row["timings"]["latency"]["compute_share"] is None


@pytest.mark.slow
def test_a_checkpoint_is_timed_as_the_reference_that_it_is(made, tmp_path, run_bench):
    """PyTorch itself belongs beside its graphs, and has no parity to show."""
    pytest.importorskip("esrgan_deploy.export.pytorch")
    result = run_bench(
        made.parent / "net.pth", made / "model.onnx", "--shape", "8x8", "--seconds", "0.1", "--no-peaks"
    )
    assert result.returncode == 0, result.stderr
    assert "the reference itself" in result.stdout
    assert "levels from net.pth" in result.stdout


def test_the_same_artefact_twice_is_refused(made, run_bench):
    """Two rows of one name cannot be told apart, or compared later."""
    result = run_bench(made / "model.onnx", made / "model.onnx", "--seconds", "0.1")
    assert result.returncode == 1
    assert "is given twice" in result.stderr


def test_a_nan_is_as_far_off_as_a_picture_can_be():
    """Compared as a number it would be under every bound."""
    first = np.zeros((1, 3, 2, 2), np.float32)
    broken = first.copy()
    broken[0, 0, 0, 0] = np.nan
    assert difference_of(broken, first) == 1.0
    assert difference_of(first + np.float32(0.25), first) == 0.25
    assert difference_of(first[:, :, :1], first) is None


def test_a_manifest_of_another_file_is_no_proof(made, tmp_path, run_bench):
    """Figures of the model before would stand beside the speed of this one."""
    for name in ("model.onnx", "model.json"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    manifest = load_manifest(tmp_path / "model.json")
    (tmp_path / "model.onnx").write_bytes((made / "model.fp16.onnx").read_bytes())
    save_manifest(manifest, tmp_path / "model.json")
    result = run_bench(tmp_path / "model.onnx", "--shape", "8x8", "--seconds", "0.1", "--no-peaks")
    assert result.returncode == 0, result.stderr
    assert "its sha256 differs" in result.stdout
    assert "verified, at least" not in result.stdout


def test_a_plan_without_a_gpu_is_one_line_and_exit_1(made, run_bench):
    """Raw TensorRT text is what users complain of."""
    from esrgan_deploy._flavour import gpu_is_usable

    if gpu_is_usable():
        pytest.skip("there is a GPU here")
    result = run_bench(made / "model.fp16.plan")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "no NVIDIA GPU" in line
    assert "model.fp16.onnx" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shape", "8"],
        ["--seconds", "0"],
        ["--streams", "0"],
        ["--peers", "caffe"],
        ["--threshold", "-1"],
        ["--html", "no/such/folder.html"],
        ["--sweep", "depth=1"],
        ["--sweep", "batch=1,0"],
        ["--sweep", "shape=8"],
        ["--sweep", "batch=1,1"],
        ["--sweep", "batch=1", "--sweep", "batch=2"],
        ["--sweep", "batch=1", "model.onnx"],
        ["--sweep", "tile=64", "--peers", "torch"],
        [],
    ],
)
def test_a_usage_error_is_exit_2(made, arguments, run_bench):
    """Scripts tell a refusal from a wrong flag by it."""
    models = [made / "model.onnx"] if arguments else []
    assert run_bench(*models, *arguments).returncode == 2


def test_every_peer_that_can_be_named_can_be_opened():
    """The help would offer one that the work then refuses."""
    assert tuple(OPENERS) == _options.PEERS


def test_the_traffic_of_a_plan_of_one_size_is_kept_and_held_against_the_copy(made, tmp_path):
    """Without it nobody sees whether a plan is bound by memory; a guess for a range of sizes would be worse."""
    found = {}
    for name, shapes in (("one", "1x32x32"), ("range", "1x16x16:1x32x32:1x48x48")):
        build = BuildOptions(flavour="tensorrt_rtx", shapes=ShapeRange.parse(shapes))
        result = engine_from_onnx(made / "model.fp16.onnx", tmp_path / f"{name}.plan", build)
        found[name] = built_fields(result, build)["declared_bytes_per_pixel"]
    assert found["range"] is None
    # At least the picture in fp16 in and sixteen times out.
    assert found["one"] > 2 * 3 * 17
    timing = Timing(warmups=(), values=(0.5,))
    row = Row(
        name="x", shape=(1, 32, 32), timings={"latency": timing}, bytes_per_pixel=found["one"],
        peak_bytes=found["one"] * 32 * 32 * 8, proof="none",
    )  # fmt: skip
    figures = row.figures("latency")
    assert figures["bytes_per_second"] == pytest.approx(found["one"] * 32 * 32 * 2)
    assert figures["bandwidth_share"] == pytest.approx(0.25)


def test_the_manifest_is_not_replaced_by_results(made, capsys):
    """`--json out/model.json` is the name that comes to mind, and it is taken."""
    before = (made / "model.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        main([str(made / "model.onnx"), "--json", str(made / "model.json")])
    assert stopped.value.code == 2
    assert "holds no results" in capsys.readouterr().err
    assert (made / "model.json").read_bytes() == before


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
    assert timing.percentile(0.99) == pytest.approx(np.percentile(timing.values, 99))
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


@pytest.mark.slow
def test_quality_reproduces_the_published_figures(assets, tmp_path):
    """Set5 of the official anime model from the fp16 graph: 28.23 dB and 0.8268."""
    options = ExportOptions(plan=False, build=BuildOptions(shapes=ShapeRange.parse("1x16x16")))
    export_model(assets / "models" / "realesr-animevideov3.pth", tmp_path / "out", options)
    quality = measure_quality(tmp_path / "out" / "model.fp16.onnx", assets / "images" / "Set5" / "x4")
    assert "rounded to fp16" in quality.arithmetic
    assert quality.psnr_y == pytest.approx(28.2325, abs=0.02)
    assert quality.ssim_y == pytest.approx(0.8268, abs=0.0005)
    assert quality.psnr_rgb == pytest.approx(25.7254, abs=0.02)


def test_what_computes_in_less_than_its_file_says_is_not_called_verified(tiny_export):
    """The manifest's figures are of the file in its own precision, and would stand beside a speed of another."""
    path = tiny_export / "model.onnx"
    info = _info(path)
    assert known_of(path, info).proof == "verified"
    half = known_of(path, dataclasses.replace(info, computes="bf16"))
    assert (half.precision, half.parity) == ("bf16", ())
    assert half.proof == "computed in bf16, of which no parity is kept"


def _info(path):
    with contextlib.closing(open_session(path, SessionOptions(providers=("cpu",), spin=False))) as session:
        return session.info
