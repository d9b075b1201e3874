"""Each study runs, as small as it can, and its figures are of what it claims."""

import importlib
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from esrgan_deploy._metrics import bicubic_downscale
from studies.__main__ import NAMES, main
from studies.int8_cpu import has_vnni
from studies.leak import slope
from studies.quantisation_methods import WAYS

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(tmp_path, capfd) -> Run:
    """Run a study and return its exit status and what it wrote."""

    def once(name: str, *options: object) -> tuple[int, dict[str, Any]]:
        written = tmp_path / f"{name}.json"
        status = main([name, *map(str, options), "--json", str(written)])
        figures = json.loads(written.read_text())
        assert figures["command"].startswith(f"python -m studies {name} ")
        assert figures["environment"]["cores"]
        assert capfd.readouterr().out.strip()
        return status, figures

    return once


def test_every_study_is_cited_with_its_command():
    """A figure whose program nobody names cannot be made again, and a program without a figure is of no use."""
    documents = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert set(re.findall(r"python -m studies (\w+)", documents)) == set(NAMES)
    for path in (ROOT / "studies" / "results").glob("*.json"):
        assert path.stem.startswith(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_typed_wrongly_is_one_line(name, capsys):
    """Hours of measuring are started by one line."""
    for arguments, status in ([name, "--help"], 0), ([name, "--no-such-option"], 2):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == status
        said = capsys.readouterr()
        assert (f"python -m studies {name}" in said.out) == (status == 0)
        assert len(said.err.splitlines()) == (status != 0)


def test_the_list_names_every_study(capsys):
    """Whoever looks for a program finds it there."""
    assert main([]) == 0
    listed = re.findall(r"^  (\w+) +\S.*[.?]$", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(NAMES)
    assert main(["tea"]) == 2
    assert "there is no study 'tea'" in capsys.readouterr().err


@pytest.mark.slow
def test_graph_forms(run, checkpoint):
    """The default form is chosen by these figures."""
    options = ("--side", 16, "--seconds", 0.1, "--threads", 1)
    status, figures = run("graph_forms", checkpoint, *options)
    forms, times = figures["forms"], figures["times"]["processor"]["forms"]
    assert status == 0
    assert forms.keys() == times.keys() == {"flat", "nested", "nested, 0.2 folded", "for plans"}
    moved = [forms[name]["bytes_per_pixel"] for name in ("for plans", "nested", "flat")]
    assert moved == sorted(set(moved))
    assert figures["difference"]["nested"] == 0 < figures["largest_output"]
    assert times["flat"]["of_flat"] == 1
    assert len({len(form["seconds"]) for form in times.values()}) == 1


@pytest.mark.slow
def test_int8_cpu(run, checkpoint, photographs):
    """Speed without parity beside it shows nothing."""
    options = ("--shape", "1x16x16", "--seconds", 0.1, "--threads", 1, "--calibration", photographs)
    status, figures = run("int8_cpu", checkpoint, *options)
    seconds = figures["seconds"]["onnxruntime"]
    fast = statistics.median(a / b for a, b in zip(seconds["fp32"], seconds["int8-cpu"], strict=True))
    assert status == (1 if figures["vnni"] and fast < 2.3 else 0)
    assert (figures["convolutions"], figures["of"]) == (20, 21)
    assert figures["measured"]["to_fp32_db"] > 30


def test_vnni_is_read_from_the_flags(tmp_path):
    """The bar is judged by it: read wrongly, a machine without VNNI fails or one with it is excused."""
    for flags, wanted in (("avx2 avx512_vnni", True), ("avx2 avx_vnni", True), ("avx2 avx512f", False)):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
        assert has_vnni(tmp_path / "cpuinfo") is wanted
    assert has_vnni(tmp_path / "none") is None


@pytest.mark.slow
def test_bounds(run, checkpoint, photographs, monkeypatch):
    """Rounding that is refused, and a fault that was planted nowhere, would both be read off as bounds."""
    monkeypatch.setattr("studies.bounds.PRECISIONS", ("fp16",))
    _, figures = run("bounds", checkpoint, "--pictures", photographs, "--limit", 1)
    (row,) = figures["rows"]
    alone = {one["on"]: one["use"] for one in row["sets"]}
    assert len(alone) == 5 + 1 + 4 + 2
    assert max(alone.values()) <= 0.5
    assert len(row["faults"]) == 17
    for fault in (
        "moved by a pixel, conv_up2",
        "a level too bright",
        "a level too dark",
        "red and blue swapped, out",
    ):
        assert row["faults"][fault]["use"] > 1, fault


def test_sums(run, checkpoint):
    """The room of plans rests on it, and sums that are not rounded would ask for none."""
    status, figures = run("sums", checkpoint)
    assert status == 0
    assert [row["on"] for row in figures["rows"]] == ["noise", "golden"]
    for row in figures["rows"]:
        assert row["times"] > 1.05
        assert row["psnr"] < row["rounded"]


def test_large_picture(run):
    """In this process, which holds torch, the peak would be that of the heaviest test before."""
    status, figures = run("large_picture", "--size", "40x70", "--tile", 48, "--map")
    assert (status, figures["size"], figures["memory map"]) == (0, [70, 40], True)
    assert figures["tiles"] > 1
    assert 0.05 < figures["peak_gib"] < 0.4


@pytest.mark.slow
def test_processors(run, tiny_export, tmp_path, monkeypatch):
    """The advice which runtime to take rests on these figures, and they are of one picture in all of them."""
    monkeypatch.setenv("ESRGAN_DEPLOY_CACHE", str(tmp_path))
    _, figures = run("processors", tiny_export / "model.onnx", "--size", "16x24", "--rounds", 2)
    (model,) = figures["models"]
    assert figures["size"] == "24x16"
    assert {"ONNX Runtime, fp32", "OpenVINO, fp32"} <= model["ways"].keys()
    first, other = model["ways"]["ONNX Runtime, fp32"], model["ways"]["OpenVINO, fp32"]
    assert first["times as fast, worked"]["median"] == 1.0
    assert first["levels"] == 0
    assert other["levels"] <= 1


@pytest.mark.slow
def test_strips(run, tiny_export, wrong_parts):
    """Way by way: a time of its own, a peak of its own, and the same picture, which that of wrong parts is not."""
    _, figures = run("strips", tiny_export / "model.onnx", "--size", "70x60", "--rounds", 2, "--strips", 16)
    (one,) = figures["models"]
    assert one["time"]["in one piece"]["median"] == 1
    assert one["time"].keys() - {"seconds in one piece"} == one["bytes a pixel"].keys()
    assert one["differences"]["largest"] <= 0.01
    assert one["differences"]["pictures"] == 2
    status, figures = run("strips", wrong_parts, "--size", "20x20", "--rounds", 2, "--strips", 16)
    assert status == 1
    assert figures["models"][0]["differences"]["largest"] > 1


def test_leak(run, small_net):
    """A generator that ends early would show no growth whatever leaks."""
    _, figures = run("leak", small_net, "--calls", 100)
    assert figures["ways"].keys() == {"upscale", "submit", "stream"}
    for way in figures["ways"].values():
        assert (way["readings"][0][0], way["readings"][-1][0]) == (0, 100)
        assert way["files"][0] == way["files"][1]
        assert way["threads"][0] == way["threads"][1]
        # A picture that is kept weighs 800 bytes at the least; buffers still find their size here.
        assert way["readings"][-1][1] > 2**20


def test_a_leak_is_the_slope_of_the_readings():
    """The difference of the ends would take one spike for a leak."""
    rising = [(calls, 1000 + 3 * calls) for calls in range(0, 1000, 10)]
    assert slope(rising) == pytest.approx(3)
    assert abs(slope([(calls, 5000 + calls % 20) for calls in range(0, 1000, 10)])) < 0.01
    # One step of the heap in the middle is none; a step every hundred calls is one.
    assert slope([(calls, 700_000 * (calls > 400)) for calls in range(0, 1000, 10)]) == 0
    assert slope([(calls, calls // 100 * 4096) for calls in range(0, 1000, 10)]) == pytest.approx(41, rel=0.1)


def test_overhead(run, small_net):
    """A ratio alone says nothing of a tiny frame, and microseconds alone nothing of a large one."""
    options = ("--sizes", "16x16", "50x40", "--tile", 32, "--halo", 4, "--threads", 1, "--seconds", 0.1)
    status, figures = run("overhead", small_net, *options)
    assert [size["size"] for size in figures["sizes"]] == [[16, 16], [50, 40]]
    assert [size["tiles"] > 1 for size in figures["sizes"]] == [False, True]
    for size in figures["sizes"]:
        pairs = list(zip(size["seconds"]["upscale"], size["seconds"]["bare"], strict=True))
        assert size["over_bare"]["median"] == pytest.approx(statistics.median(a / b for a, b in pairs))
        extra = statistics.median((a - b) * 1e6 for a, b in pairs)
        assert size["microseconds"]["median"] == pytest.approx(extra, abs=1e-6)
        allowed = max(0.03 * statistics.median(b for _, b in pairs), 50e-6) * 1e6
        assert size["allowed_microseconds"] == pytest.approx(allowed)
        assert size["within"] == (extra <= allowed)
    assert status == (0 if all(size["within"] for size in figures["sizes"]) else 1)


def test_overlap(run):
    """If one slot took less than three stages, the session would not sleep and the figure would mean nothing."""
    options = ("--stage", 0.02, "--frames", 8, "--rounds", 1, "--slots", 1, 2)
    _, figures = run("overlap", *options)
    one, two = (figures["stages_per_frame"][slots][0] for slots in ("1", "2"))
    assert one >= 3 > two


@pytest.mark.slow
def test_quantisation_methods(run, checkpoint, tmp_path, photographs):
    """Rows that saw other pictures compare nothing, and weights in fp32 cannot lose more than rounded ones."""
    for name in ("LR", "HR"):
        (tmp_path / "set" / name).mkdir(parents=True)
    with Image.open(photographs / "astronaut.png") as opened:
        hr = np.asarray(opened)[:66, :64]
    Image.fromarray(hr).save(tmp_path / "set" / "HR" / "a.png")
    Image.fromarray(bicubic_downscale(hr[:64], 4)).save(tmp_path / "set" / "LR" / "a.png")
    ways = ("mse, nearest", "equalised, mse, activations alone")
    options = ("--calibration", photographs, "--sets", tmp_path / "set", "--ways")
    _, figures = run("quantisation_methods", checkpoint, *options, *ways)
    assert figures["fp32"]["set"]["pictures"] == 1
    assert tuple(row["way"] for row in figures["ways"]) == ways
    # All but the ends and what reads an enlarged picture.
    assert all(0.5 < row["share"] < 1 for row in figures["ways"])
    nearest, alone = (row["sets"]["set"]["to_fp32_db"] for row in figures["ways"])
    assert alone > nearest > 30


def test_ways_are_ones_that_the_export_knows():
    """A row that nobody can ask of the export is of no use."""
    from esrgan_deploy.export.quantisation import QuantiseOptions

    for fields in WAYS.values():
        QuantiseOptions(**fields)


@pytest.mark.slow
def test_training_cost(run):
    """Every figure of the table comes from a training that ran."""
    small = {"features": 8, "blocks": 1, "growth": 4, "batch": 2, "crop": 8, "steps": 3, "rounds": 1}
    options = [f"--{key}={value}" for key, value in small.items()]
    _, figures = run("training_cost", *options, "--variants", "fp32, checkpointing")
    ratio = figures["ratio_to_bare_loop"]
    assert ratio["median"] == ratio["trainer"][0] / ratio["bare"][0]
    (cost,) = figures["variants"].values()
    assert cost["images_per_second"] > 0
    assert 0 <= cost["waited"] < 1
    assert cost["peak_mib"] > 50
    assert figures["loader_images_per_second"].keys() == {"bicubic", "realesrgan"}


@pytest.fixture(scope="module")
def small_net(tmp_path_factory) -> Path:
    """A net of two small convolutions that enlarges two times."""
    import onnx

    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.2, shape).astype(np.float32) for shape in ((8, 3, 3, 3), (12, 8, 3, 3))]
    net = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        net (float[n,3,h,w] input) => (float[n,3,h2,w2] output) {
            a = Conv<pads = [1, 1, 1, 1]>(input, w0)
            b = LeakyRelu<alpha = 0.2>(a)
            c = Conv<pads = [1, 1, 1, 1]>(b, w1)
            output = DepthToSpace<blocksize = 2, mode = "CRD">(c)
        }""")
    net.graph.initializer.extend(onnx.numpy_helper.from_array(one, f"w{i}") for i, one in enumerate(weights))
    path = tmp_path_factory.mktemp("overhead") / "net.onnx"
    onnx.save(net, path)
    return path


def _way(name: str, ratio: float) -> dict[str, Any]:
    return {"ways": {name: {"times as fast, worked": {"median": ratio}}}}


@pytest.mark.parametrize(
    ("name", "held", "broken"),
    [
        ("large_picture", {"peak_gib": 1.5}, {"peak_gib": 1.51}),
        (
            "processors",
            {
                "bf16": False,
                "vnni": None,
                "models": [_way("OpenVINO, fp32", 1.0), _way("OpenVINO, int8", 2.0)],
            },
            {"bf16": False, "vnni": None, "models": [_way("OpenVINO, fp32", 0.99)]},
        ),
        (
            "processors",
            {"bf16": True, "vnni": True, "models": [_way("OpenVINO, bf16", 1.9)]},
            {"bf16": True, "vnni": True, "models": [_way("OpenVINO, int8", 2.9)]},
        ),
        (
            "strips",
            {"models": [{"differences": {"largest": 0.01, "samples": 1e-5}}]},
            {"models": [{"differences": {"largest": 0.0, "samples": 1.1e-5}}]},
        ),
        (
            "strips",
            {"models": [{"differences": {"largest": 0.01, "samples": 1e-5}}]},
            {"models": [{"differences": {"largest": 0.011, "samples": 0.0}}]},
        ),
        ("quantisation_cost", {"minutes": 15.0, "peak_gib": 8.0}, {"minutes": 15.1, "peak_gib": 8.0}),
        ("quantisation_cost", {"minutes": 15.0, "peak_gib": 8.0}, {"minutes": 15.0, "peak_gib": 8.1}),
        (
            "leak",
            {"ways": {"one": {"bytes_per_1000_calls": 16384}}},
            {"ways": {"one": {"bytes_per_1000_calls": 16385}}},
        ),
        ("overlap", {"stages_per_frame": {"3": [1.15]}}, {"stages_per_frame": {"3": [1.16]}}),
        (
            "int8_cpu",
            {"vnni": True, "seconds": {"onnxruntime": {"fp32": [2.4] * 3, "int8-cpu": [1.0] * 3}}},
            {"vnni": True, "seconds": {"onnxruntime": {"fp32": [2.2] * 3, "int8-cpu": [1.0] * 3}}},
        ),
        ("overhead", {"sizes": [{"within": True}]}, {"sizes": [{"within": True}, {"within": False}]}),
    ],
)
def test_a_bar_is_held_on_one_side_and_broken_on_the_other(name, held, broken):
    """A study that is within its bar whatever it measured says nothing."""
    study = importlib.import_module(f"studies.{name}")
    assert study.within(held) is True
    assert study.within(broken) is False


@pytest.mark.slow
def test_killed_job(run):
    """A job that survives its end only by luck would not survive five of them."""
    status, figures = run("killed_job", "--pictures", 40, "--bad", 4, "--kills", 5)
    seen = {name: value for name, value in figures.items() if name not in ("command", "environment")}
    assert status == 0, json.dumps(seen)
    assert figures["killed"] == 5
    assert figures["outputs"] == {"undisturbed": 36, "killed": 36, "two": 36}
