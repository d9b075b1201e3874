"""A broken picture is noticed, and a dark one is not taken for it."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from esrgan_deploy import InferenceError
from esrgan_deploy.export.graphs import save, to_uint8_form, watch
from esrgan_deploy.runtime import open_session
from esrgan_deploy.runtime.sessions import BatchOutput, SessionInfo, bad_picture_error, judge

Body = Callable[[Any, str], str]
Write = Callable[..., Path]

INFO = SessionInfo(
    name="net.fp16.onnx", form="float", dtype=np.dtype(np.float16), in_channels=3, out_channels=3,
    scale=Fraction(2), provider="none",
)  # fmt: skip


def overflowing(g: Any, x: str) -> str:
    """What fp16 does to values over 65504; ONNX Runtime keeps only casts that are written out in pairs."""
    loud = g("Mul", g("Cast", x, to=TensorProto.FLOAT), g.constant(1e5, np.float32))
    half = g("Cast", g("Cast", loud, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)
    quiet = g("Mul", half, g.constant(1e-5, np.float32))
    return g.resize(g("Cast", quiet, to=TensorProto.FLOAT16), 2, "nearest")


def not_a_number(g: Any, x: str) -> str:
    """The square root of what is negative wherever it is bright."""
    return g.resize(g("Sqrt", g("Sub", g.constant(0.5), x)), 2, "nearest")


def saturated(g: Any, x: str) -> str:
    """White, whatever goes in."""
    return g.resize(g("Add", x, g.constant(2.0)), 2, "nearest")


def doubled(g: Any, x: str) -> str:
    """A sound net."""
    return g.resize(x, 2, "nearest")


@pytest.fixture
def write(graphs: ModuleType, tmp_path: Path) -> Write:
    """Write a watched graph of a body in either form."""

    def written(body: Body, form: str, dtype: str = "fp16") -> Path:
        path: Path = graphs.write_graph(tmp_path / "net.onnx", body, dtype=dtype)
        model = ir.load(path)
        watch(model)
        if form == "uint8":
            to_uint8_form(model)
        save(model, path)
        return path

    return written


def batch_of(*values: float, form: str, dtype: Any = np.float16) -> np.ndarray:
    """Pictures of 6 by 4 pixels, each black with a right half of the given value."""
    batch = np.zeros((len(values), 4, 6, 3), np.float32)
    for picture, value in zip(batch, values, strict=True):
        picture[:, 3:] = value
    if form == "uint8":
        return np.rint(batch * 255).astype(np.uint8)
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2).astype(dtype))


def made_of(path: Path, batch: np.ndarray) -> tuple[BatchOutput, SessionInfo]:
    """Through a slot, as the Upscaler does."""
    session = open_session(path)
    slot = session.slot()
    number = batch.shape[0]
    height, width = batch.shape[1:3] if session.info.form == "uint8" else batch.shape[2:]
    slot.prepare((number, height, width))[:] = batch
    slot.start()
    made = slot.finish()
    session.close()
    return made, session.info


@pytest.mark.parametrize("form", ["float", "uint8"])
@pytest.mark.parametrize("body", [overflowing, not_a_number])
def test_the_third_picture_alone_is_bad(write, form, body):
    """In the uint8 form its bytes look like any others; a mean over the whole batch would not say which."""
    made, info = made_of(write(body, form), batch_of(0.2, 0.3, 1.0, 0.1, form=form))
    assert info.watched
    assert made.health is not None
    assert np.isfinite(made.health[:, 0]).tolist() == [True, True, False, True]
    wrong = judge(made, info, 4)
    assert wrong is not None
    assert wrong.startswith("NaN or infinite samples in picture 3 of 4 (mean ")
    assert judge(made, info, 2) is None


@pytest.mark.parametrize("form", ["float", "uint8"])
def test_a_white_picture_of_one_with_content_is_bad(write, form):
    """Every sample is finite, and the picture is gone."""
    made, info = made_of(write(saturated, form), batch_of(0.0, 0.05, 0.5, form=form))
    wrong = judge(made, info, 3)
    assert wrong is not None
    assert wrong.startswith(
        "one value only in picture 3 of 3 (a spread of 0 levels, of an input with one of 12"
    )
    assert judge(made, info, 2) is None


@pytest.mark.parametrize("form", ["float", "uint8"])
def test_black_film_is_sound(write, form):
    """Films begin with it: an alarm would stop every job at its first frame."""
    made, info = made_of(write(doubled, form), batch_of(0.0, 0.02, 1.0, form=form))
    assert judge(made, info, 3) is None


@pytest.mark.parametrize("form", ["float", "uint8"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_figures_are_numpys_of_each_picture(write, form, dtype):
    """Reduced over the wrong axes they would mix pictures, or miss rows."""

    def twice_less_half(g: Any, x: str) -> str:
        return g.resize(g("Sub", g("Mul", x, g.constant(2.0)), g.constant(0.5)), 2, "nearest")

    random = np.random.default_rng(0)
    levels = (random.random((3, 5, 7, 3)) * np.array([255, 90, 20]).reshape(3, 1, 1, 1)).astype(np.uint8)
    unit = levels.astype(np.float64) / 255
    batch = levels
    if form == "float":
        batch = np.ascontiguousarray(
            unit.transpose(0, 3, 1, 2).astype({"fp32": np.float32, "fp16": np.float16}[dtype])
        )
    made, _ = made_of(write(twice_less_half, form, dtype), batch)
    out = 2 * unit - 0.5
    axes = (1, 2, 3)
    spread = np.clip(out.max(axes), 0, 1) - np.clip(out.min(axes), 0, 1)
    expected = np.stack([out.mean(axes), spread, unit.max(axes) - unit.min(axes)], axis=1)
    assert made.health is not None
    assert made.health.dtype == np.float32
    # Samples of fp16 are off by 2^-12, and doubled.
    np.testing.assert_allclose(made.health, expected, atol=2e-3 if dtype == "fp16" else 2e-6)
    # The third is clipped to black throughout: a spread before clipping would not be 0.
    assert made.health[2, 1] == 0 < out[2].max() - out[2].min()


def test_run_gives_the_picture_alone(write):
    """Whoever calls it expects one array."""
    session = open_session(write(doubled, "uint8"))
    assert session.run(batch_of(0.5, 1.0, form="uint8")).shape == (2, 8, 12, 3)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("health", TensorProto.FLOAT, ["n", 4]),
        ("health", TensorProto.DOUBLE, ["n", 3]),
        ("health", TensorProto.FLOAT, ["n", 3, 1]),
    ],
)
def test_a_second_output_of_another_kind_is_refused(graphs, tmp_path, name, dtype, shape):
    """Taken for the figures of the watchdog, it would condemn or acquit pictures by chance."""
    path = graphs.write_graph(tmp_path / "two.onnx", doubled)
    model = onnx.load(path)
    ones = np.ones((1, *[size for size in shape if isinstance(size, int)]))
    constant = helper.make_tensor("ones", dtype, ones.shape, ones.flatten().tolist())
    model.graph.node.append(helper.make_node("Constant", [], [name], value=constant))
    model.graph.output.append(helper.make_tensor_value_info(name, dtype, shape))
    onnx.save(model, path)
    with pytest.raises(InferenceError, match=r"1 inputs and 2 outputs.*second output 'health'"):
        open_session(path)


def test_a_float_graph_from_elsewhere_is_searched_for_nan():
    """It has no figures of its own, and the third picture of a batch is as visible as the first."""
    batch = np.full((3, 3, 4, 4), 0.5, np.float32)
    batch[2, 1, 2, 3] = -np.inf
    info = dataclasses.replace(INFO, dtype=np.dtype(np.float32))
    assert judge(BatchOutput(batch), info, 3) == "NaN or infinite samples in picture 3 of 3"
    assert judge(BatchOutput(batch), info, 2) is None


@pytest.mark.parametrize("form", ["float", "uint8"])
def test_without_figures_one_value_is_bad_only_where_the_input_is_known_to_have_content(form):
    """A black picture alone does not tell whether the film is black there."""
    info = dataclasses.replace(INFO, form=form, dtype=np.dtype(np.uint8 if form == "uint8" else np.float16))
    dark = batch_of(0.0, 0.0, form=form)
    content = batch_of(0.0, 1.0, form=form)
    assert judge(BatchOutput(dark), info, 2) is None
    assert judge(BatchOutput(dark), info, 2, given=dark) is None
    assert judge(BatchOutput(content), info, 2, given=content) is None
    wrong = judge(BatchOutput(dark), info, 2, given=content)
    assert wrong == "one value only in picture 2 of 2 (of an input with a spread of 255 levels)"


def test_one_lit_sample_of_many_is_a_picture():
    """Few samples are looked at first, and a night sky has one star."""
    info = dataclasses.replace(INFO, dtype=np.dtype(np.float32))
    sky = np.zeros((1, 3, 200, 300), np.float32)
    sky[0, 2, 151, 203] = 1.0
    assert judge(BatchOutput(sky), info, 1, given=sky) is None
    dark = np.zeros_like(sky)
    assert judge(BatchOutput(dark), info, 1, given=sky) is not None


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({}, "float16 overflowed; use the fp32 artefact (model.onnx) or a bf16 one"),
        ({"precision": "int8", "form": "uint8", "dtype": np.dtype(np.uint8)}, "float16 overflowed"),
        ({"dtype": np.dtype(np.float32)}, "run: esrgan-export again from a sound checkpoint"),
        ({"precision": "bf16", "form": "uint8", "dtype": np.dtype(np.uint8)}, "the weights are broken"),
        ({"form": "uint8", "dtype": np.dtype(np.uint8)}, "use the fp32 artefact"),
    ],
)
def test_the_error_names_the_file_and_what_to_run(facts, says):
    """A picture that is refused is of no use without the way to one that is not."""
    error = bad_picture_error("NaN or infinite samples in picture 1 of 1", dataclasses.replace(INFO, **facts))
    assert str(error).startswith(
        "net.fp16.onnx made NaN or infinite samples in picture 1 of 1, which is no pic"
    )
    assert says in str(error)
