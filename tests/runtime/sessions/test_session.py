"""Opening an artefact: who runs it, what is known of it, and what is refused."""

import json
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from esrgan_deploy import CheckpointError, InferenceError, MissingDependencyError, Upscaler
from esrgan_deploy.runtime import SessionOptions, open_session
from esrgan_deploy.runtime.sessions import _open as _open_session


def facts(**changes: Any) -> str:
    """What esrgan-export writes into a graph."""
    spec = {"scale": 4, "in_channels": 3, "out_channels": 3}
    return json.dumps({"precision": "fp32", "outscale": 4.0, "size_multiple": 1, "spec": spec, **changes})


@pytest.mark.parametrize(
    ("kind", "body", "io", "scale", "multiple", "form", "dtype"),
    [
        ("nearest", {"scale": 4}, {}, "4", 1, "float", np.float32),
        ("nearest", {"scale": 1}, {"dtype": "fp16"}, "1", 1, "float", np.float16),
        ("nearest", {"scale": 2}, {"form": "uint8"}, "2", 1, "uint8", np.uint8),
        ("nearest", {"scale": 3}, {"channels": 1}, "3", 1, "float", np.float32),
        ("nearest", {"scale": 2}, {"size": (1, 48, 32)}, "2", 1, "float", np.float32),
        ("unshuffled", {"factor": 2}, {}, "2", 2, "float", np.float32),
        ("unshuffled", {"factor": 4}, {"form": "uint8"}, "2", 4, "uint8", np.uint8),
        ("shrunk", {"outscale": 1.5}, {}, "3/2", 1, "float", np.float32),
        ("shrunk", {"outscale": 4 / 3}, {}, "4/3", 1, "float", np.float32),
        ("shrunk", {"outscale": 1.33}, {}, "133/100", 1, "float", np.float32),
        ("shrunk", {"outscale": 0.5}, {"form": "uint8"}, "1/2", 1, "uint8", np.uint8),
    ],
)
def test_a_bare_graph_is_measured(make, kind, body, io, scale, multiple, form, dtype):
    """Without a manifest a wrong guess gives a picture of the wrong size or a refused odd side."""
    info = open_session(make(kind, io=io, **body)).info
    assert (info.scale, info.size_multiple, info.form) == (Fraction(scale), multiple, form)
    assert info.dtype == dtype
    assert info.in_channels == info.out_channels == io.get("channels", 3)
    if "size" in io:
        assert info.min_shape == info.max_shape == io["size"]


def test_the_graphs_own_word_is_believed(make):
    """It knows what no probe can, such as a size multiple that the net only pads away."""
    info = open_session(make("nearest", scale=4, io={"metadata": facts(size_multiple=8)})).info
    assert (info.scale, info.size_multiple) == (4, 8)


def test_the_outscale_is_not_the_models_scale(make):
    """An x4 model exported with an outscale of 1.5 makes x1.5."""
    io = {"metadata": facts(outscale=1.5, size_multiple=2)}
    assert open_session(make("shrunk", outscale=1.5, io=io)).info.scale == Fraction(3, 2)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", facts(outscale=0), facts(outscale=None), facts(size_multiple=0), facts(spec=3)],
)
def test_senseless_metadata_does_not_stop_a_sound_graph(make, text):
    """Anyone can write under any key; such a graph is measured like one without."""
    info = open_session(make("nearest", scale=3, io={"metadata": text})).info
    assert (info.scale, info.size_multiple) == (3, 1)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.onnx", None, "no file"),
        ("empty.onnx", b"", "esrgan-export"),
        ("page.onnx", b"<!DOCTYPE html><html>Not found</html>", "esrgan-export"),
        ("model.pth", b"PK\x03\x04", "damaged zip"),
        ("model.safetensors", b"PK\x03\x04", "damaged zip"),
        ("model.txt", b"", r"\.onnx or \.plan"),
        ("model", b"", r"\.onnx or \.plan"),
    ],
)
def test_what_is_no_graph_is_refused_in_one_line(tmp_path, name, content, says):
    """Each of these is an everyday mistake; a traceback of protobuf helps nobody."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    # A checkpoint is read by the exporter, whose errors are CheckpointErrors.
    with pytest.raises((InferenceError, CheckpointError), match=says) as caught:
        open_session(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_truncated_graph_is_refused(make):
    """A download that stopped."""
    path = make("convolved")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InferenceError, match="cut off"):
        open_session(path)


def test_a_folder_names_the_file_to_give(tmp_path):
    """`--model out` instead of `--model out/model.onnx`."""
    with pytest.raises(InferenceError, match=r"folder.*model\.onnx"):
        open_session(tmp_path)


@pytest.mark.parametrize("beside", ["model.fp16.onnx", "model.onnx", None])
def test_a_plan_without_a_gpu_points_to_the_graph_beside_it(tmp_path, beside, monkeypatch):
    """The user has a picture to enlarge, and something in the same folder can do it."""
    monkeypatch.setattr(_open_session, "cuda_device_count", lambda: 0)
    plan = tmp_path / "model.fp16.plan"
    plan.write_bytes(b"ftrt")
    if beside:
        (tmp_path / beside).write_bytes(b"")
    with pytest.raises(InferenceError, match="no NVIDIA GPU") as caught:
        open_session(plan)
    assert (str(tmp_path / beside) if beside else "the .onnx that the plan was built from") in str(
        caught.value
    )


def test_graphs_that_enlarge_no_pictures_are_refused(graphs, tmp_path):
    """Run on them, the tiling would fail in the middle of the picture."""
    recolour = graphs.write_graph(tmp_path / "five.onnx", lambda g, x: g.resize(x, 2, "nearest"), channels=5)
    with pytest.raises(InferenceError, match="5 channels"):
        open_session(recolour)
    flat = graphs.write_graph(
        tmp_path / "flat.onnx", lambda g, x: g("ReduceMean", x, g.constant([2, 3], np.int64), keepdims=0)
    )
    with pytest.raises(InferenceError, match="does not enlarge"):
        open_session(flat)
    wide = graphs.write_graph(tmp_path / "wide.onnx", lambda g, x: g("Concat", x, x, axis=3))
    with pytest.raises(InferenceError, match="one factor"):
        open_session(wide)


def test_an_unknown_provider_lists_the_known_ones(make):
    """ONNX Runtime itself only warns, and runs on the CPU."""
    with pytest.raises(InferenceError, match=r"no provider 'gpu'.*cpu"):
        open_session(make("nearest"), SessionOptions(providers=("gpu",)))


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_a_provider_is_named_in_short_or_in_full(make, name):
    """And the session says what it runs on."""
    assert open_session(make("nearest"), SessionOptions(providers=(name,))).info.provider.endswith(", CPU")


@pytest.mark.parametrize("options", [{"threads": 0}, {"providers": ()}])
def test_options_out_of_range_are_value_errors(make, options):
    """ONNX Runtime takes 0 threads for its own choice, and no providers for a warning."""
    with pytest.raises(ValueError, match=r"threads|providers"):
        open_session(make("nearest"), SessionOptions(**options))


def test_a_failing_run_is_one_line_with_the_batch(make, capfd):
    """ONNX Runtime's own text runs over five lines, and it prints it as well as raising it."""
    session = open_session(make("unshuffled", factor=4))
    with pytest.raises(InferenceError, match=r"model\.onnx failed on a batch of 1x3x5x5") as caught:
        session.run(np.zeros((1, 3, 5, 5), np.float32))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_without_onnxruntime_the_error_is_the_command(make, monkeypatch):
    """The first thing that a user of the bare package meets."""
    path = make("nearest")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'esrgan-deploy\[cpu\]'"):
        open_session(path)


@pytest.mark.usefixtures("counted_gpu")
def test_a_folder_gives_no_plan_where_no_tensorrt_is_installed(tiny_export, monkeypatch):
    """A GPU with PyTorch or ONNX Runtime alone is common; the graph beside the plan runs there."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with Upscaler(tiny_export, providers=["cpu"]) as up:
        assert up.info.name.endswith(".onnx")
