"""What comes out of the Upscaler is what the net computes, whatever lies between."""

import importlib.resources
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esrgan_deploy import InferenceError, Upscaler
from esrgan_deploy.runtime import default_model


def squares(picture: np.ndarray, scale: int) -> np.ndarray:
    """What a nearest-neighbour net makes."""
    return np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)


def reference(path: Path, picture: np.ndarray) -> np.ndarray:
    """The bare float graph on the whole picture, rounded as the contract says."""
    graph = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = (picture.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    made = np.clip(graph.run(None, {"input": batch})[0][0].transpose(1, 2, 0), 0, 1)
    return np.rint(made * 255).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("io", [{}, {"form": "uint8"}, {"dtype": "fp16"}], ids=["fp32", "uint8", "fp16"])
def test_every_kind_of_array_comes_back_exactly(make, noise, dtype, channels, io):
    """Repeating pixels loses nothing, so neither may the way in, the tiling or the way out."""
    shape = (37, 53) if channels == 0 else (37, 53, channels)
    lr = noise(*shape, dtype=dtype)
    if channels in (2, 4):
        lr[..., -1] = np.maximum(lr[..., -1], np.array(0.5 if dtype is np.float32 else 1, dtype))
    with Upscaler(make("nearest", io=io), tile=20, halo=3, threads=1) as up:
        hr = up.upscale(lr)
    expected = squares(lr, 4)
    assert hr.dtype == lr.dtype
    assert hr.shape == expected.shape
    # In units of white: half a step of what the samples pass through, and float32's own rounding.
    step = {"uint8": 1 / 255, "fp16": 2**-10}.get(next(iter(io.values()), ""), 0.0)
    peak = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    tolerance = 0.0 if dtype is np.uint8 else peak * (step / 2 + 1e-6)
    error = np.abs(hr.astype(np.float64) - expected).max()
    assert error <= tolerance, f"off by {error}, allowed {tolerance}"


def test_uint16_of_a_float_net_keeps_all_16_bits(make):
    """A detour over 8 bits would leave 256 values of 65536."""
    lr = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    with Upscaler(make("nearest", scale=1), threads=1) as up:
        np.testing.assert_array_equal(up.upscale(np.dstack([lr] * 3))[..., 0], lr)


@pytest.mark.parametrize(
    ("kind", "body", "halo"),
    [
        ("convolved", {"layers": 5}, 5),
        ("convolved", {"scale": 4, "layers": 3}, 3),
        ("unshuffled", {"factor": 2}, 4),
        ("unshuffled", {"factor": 4}, 8),
        ("shrunk", {"outscale": 1.5}, 4),
        ("shrunk", {"outscale": 2.5}, 4),
    ],
)
def test_tiles_with_enough_halo_equal_the_whole_picture(make, noise, kind, body, halo):
    """With the receptive field inside the halo a seam can only come from a wrong origin or a wrong crop."""
    # A broken scale pads odd sides when it tiles, and only then.
    lr, path = noise(90, 72 if kind == "shrunk" else 71, 3), make(kind, **body)
    with Upscaler(path, tile=0, threads=1) as up:
        whole = up.upscale(lr)
    with Upscaler(path, tile=40, halo=halo, threads=1) as up:
        assert up.plan(*lr.shape[:2]).count >= 6
        tiled = up.upscale(lr)
    # Another tile size may choose another order of summation: one level, and next to nowhere.
    difference = np.abs(whole.astype(int) - tiled)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("size", [(301, 277), (299, 1)])
def test_a_scale_that_float32_rounds_down_still_tiles(make, noise, size):
    """0.325 of 720 is 234, and 233 in float32: the last row of a tile, of which nothing is kept."""
    with Upscaler(make("shrunk", outscale=1.3), tile=160, halo=8, threads=1) as up:
        assert up.plan(*size).count > 1
        assert up.upscale(noise(*size, 3)).shape == (size[0] * 13 // 10, size[1] * 13 // 10, 3)


@pytest.mark.parametrize("outscale", [4, 1])
def test_a_graph_that_makes_another_size_than_it_says_is_refused(make, noise, outscale):
    """Too small an output leaves holes; too large a one, cropped, would show a corner of the picture."""
    spec = {"in_channels": 3, "out_channels": 3}
    said = json.dumps({"outscale": outscale, "size_multiple": 1, "spec": spec})
    path = make("nearest", scale=2, io={"metadata": said})
    with Upscaler(path, halo=2) as up, pytest.raises(InferenceError, match="1x3x28x28 of tiles of 14x14"):
        up.upscale(noise(10, 10, 3))


def test_too_small_a_halo_shows_a_seam(make, noise):
    """If this were equal, the test above would not see a seam either."""
    lr, path = noise(90, 71, 3), make("convolved", layers=5)
    with Upscaler(path, tile=0, threads=1) as whole, Upscaler(path, tile=40, halo=2, threads=1) as tiled:
        assert np.abs(whole.upscale(lr).astype(int) - tiled.upscale(lr)).max() > 3


def test_untiled_equals_the_bare_graph(make, noise):
    """The channels in order, the range, the rounding: all as the network contract has it."""
    lr, path = noise(33, 20, 3), make("convolved", scale=2)
    with Upscaler(path, tile=0, edge="zero") as up:
        hr = up.upscale(lr)
    expected = reference(path, lr)
    assert 20 < hr.mean() < 235
    assert np.abs(hr.astype(int) - expected).max() <= 1
    assert (hr != expected).mean() < 1e-3


def test_halves_are_rounded_to_even(make):
    """The uint8 graphs and PyTorch round to even, and parity is counted in levels."""
    lr = np.array([[[0.5, 1.5, 2.5]]], np.float32) / 255
    with Upscaler(make("nearest", scale=1)) as up:
        assert (np.rint(up.upscale(lr) * 255) == [[[0, 2, 2]]]).all()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 60), width=st.integers(1, 60), tile=st.integers(9, 40))
def test_any_size_and_tile_gives_the_same_picture(make, noise, height, width, tile):
    """From a single pixel on."""
    lr = noise(height, width, 3)
    with Upscaler(make("nearest", scale=2), tile=tile, halo=4, threads=1) as up:
        np.testing.assert_array_equal(up.upscale(lr), squares(lr, 2))


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 5), (7, 4)])
@pytest.mark.parametrize("factor", [2, 4])
def test_sides_that_are_no_multiple_are_padded_and_cropped(make, noise, size, factor):
    """An unshuffle net refuses odd sides; a user's pictures have them."""
    with Upscaler(make("unshuffled", factor=factor)) as up:
        assert up.info.size_multiple == factor
        hr = up.upscale(noise(*size, 3))
    assert hr.shape == (2 * size[0], 2 * size[1], 3)


def test_padding_repeats_the_edge(make, noise):
    """Padding with black would darken the last row and column of every odd picture."""
    lr = noise(3, 5, 3)
    padded = np.pad(lr, ((0, 1), (0, 3), (0, 0)), mode="edge")
    with Upscaler(make("unshuffled", factor=4)) as up:
        np.testing.assert_array_equal(up.upscale(lr), up.upscale(padded)[:6, :10])


def test_a_graph_of_fixed_size_takes_any_picture(make, noise):
    """Graphs from elsewhere are often exported at one size and batch."""
    path = make("convolved", scale=2, layers=3, io={"size": (2, 24, 32)})
    whole = make("convolved", name="open.onnx", scale=2, layers=3)
    for shape in [(5, 7, 3), (24, 32, 3), (61, 83, 3)]:
        lr = noise(*shape)
        with Upscaler(path, halo=3, threads=1) as up, Upscaler(whole, tile=0, threads=1) as other:
            assert up.plan(*shape[:2]).tile == (24, 32)
            inside = np.s_[:-8, :-8] if shape[0] < 24 else np.s_[:]
            hr, expected = up.upscale(lr)[inside], other.upscale(lr)[inside]
        assert np.abs(hr.astype(int) - expected).max() <= 1


def test_gray_models_take_gray_and_colour(make, noise):
    """Each channel is a picture of its own to them."""
    lr = noise(30, 41, 4)
    lr[..., 3] |= 1
    with Upscaler(make("nearest", scale=3, io={"channels": 1}), tile=20, halo=2) as up:
        np.testing.assert_array_equal(up.upscale(lr), squares(lr, 3))
        np.testing.assert_array_equal(up.upscale(lr[..., 0]), squares(lr[..., 0], 3))


def test_gray_through_a_colour_model_is_its_luma(make, noise):
    """Taking one channel of three would be gray as well, and wrong."""
    gray = noise(20, 20)
    with Upscaler(make("convolved", scale=2)) as up:
        colour = up.upscale(np.dstack([gray] * 3).astype(np.float32) / 255)
        made = up.upscale(gray)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(made - np.rint(luma * 255)).max() <= 1
    assert np.abs(colour[..., 0] - colour[..., 1]).max() > 0.1


@pytest.mark.parametrize("io", [{}, {"dtype": "fp16"}], ids=["fp32", "fp16"])
def test_nan_is_an_error_and_names_the_model(make, io):
    """A NaN cast to uint8 is 0: without the check the user gets a black picture and exit status 0."""
    lr = np.full((8, 8, 3), 255, np.uint8)
    with Upscaler(make("broken", name="net.onnx", io=io)) as up:
        up.upscale(lr // 4)
        with pytest.raises(InferenceError, match=r"net\.onnx made NaN.*(fp32|esrgan-export)"):
            up.upscale(lr)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.zeros((4, 4, 5), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros((4,), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.full((4, 4, 3), 255, np.float32), "255"),
        (np.full((4, 4, 3), np.nan, np.float32), "finite"),
    ],
)
def test_what_is_no_picture_is_refused(make, picture, says):
    """0..255 floats taken for 0..1 would come out white; NaN would be blamed on the model."""
    with Upscaler(make("nearest")) as up, pytest.raises(InferenceError, match=says):
        up.upscale(picture)


def test_progress_ends_at_its_total(make, noise):
    """A bar that stops at 50 % because alpha was not counted looks like a hang."""
    seen: list[tuple[int, int]] = []
    with Upscaler(make("nearest"), tile=11, halo=1) as up:
        up.upscale(noise(25, 25, 4), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen) == 2 * 9


def test_an_output_that_cannot_be_held_is_one_line(make):
    """numpy's own message names neither the picture nor what to do."""
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2**23, 2**23, 3), (0, 0, 0))
    with Upscaler(make("nearest"), tile=2**20) as up, pytest.raises(InferenceError, match="GiB"):
        up.upscale(huge)


def test_the_source_is_not_written_to(make, noise):
    """Callers go on using their frames."""
    lr = noise(30, 30, 4)
    lr[5:9, 5:9, 3] = 0
    lr.setflags(write=False)
    with Upscaler(make("nearest"), tile=12, halo=2) as up:
        up.upscale(lr)


def test_without_a_path_the_shipped_model_is_used(noise):
    """The quick start names no model."""
    with Upscaler(threads=1) as up:
        assert up.info.name == default_model().name
        assert up.upscale(noise(5, 6, 3)).shape == (20, 24, 3)


def test_an_installation_without_the_model_says_what_to_run(monkeypatch):
    """A wheel that lost its data must not end in an error of ONNX Runtime."""
    monkeypatch.setattr(importlib.resources, "files", lambda package: Path("/nowhere"))
    with pytest.raises(InferenceError, match=r"no model was named.*esrgan-export"):
        Upscaler()
