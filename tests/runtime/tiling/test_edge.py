"""The picture's own edge: repeated beyond the picture for as far as the halo goes, and so in every artefact."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from esrgan_deploy import InferenceError, Upscaler
from esrgan_deploy.runtime import open_session
from esrgan_deploy.runtime._cli import main

# Graphs with how far each sees, in input pixels: of any size in either form, of one size, folded, of broken scale.
NETS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "float": ("convolved", {"layers": 3}, {}, 3),
    "uint8": ("convolved", {"layers": 3}, {"form": "uint8"}, 3),
    "one size": ("convolved", {"layers": 3}, {"size": (2, 24, 32)}, 3),
    "unshuffled": ("unshuffled", {"factor": 2}, {}, 4),
    "x1.5": ("shrunk", {"outscale": 1.5}, {}, 4),
    "x2.5": ("shrunk", {"outscale": 2.5}, {}, 4),
}


def bare(path: Path, picture: np.ndarray, pad: int = 0, multiple: int = 2) -> np.ndarray:
    """What the net itself makes of the whole picture, padded by repeating its edge and cropped; in levels."""
    height, width = picture.shape[:2]
    more = ((pad, pad + -height % multiple), (pad, pad + -width % multiple), (0, 0))
    batch = np.pad(picture, more, mode="edge").astype(np.float32).transpose(2, 0, 1)[None] / 255
    graph = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    made = np.clip(graph.run(None, {"input": batch})[0][0].transpose(1, 2, 0), 0, 1) * 255
    scale = made.shape[0] / batch.shape[2]
    start = round(pad * scale)
    return made[start : start + int(height * scale), start : start + int(width * scale)]


@pytest.mark.parametrize("net", NETS)
def test_the_picture_is_what_the_net_makes_of_it_with_its_edge_repeated(make, noise, net):
    """A rim around every picture, and another one in tiles, graphs of one size, broken scales or thin pictures."""
    kind, body, io, reach = NETS[net]
    # The float graph of any size with the same weights says what is right.
    right = make(kind, name="right.onnx", **body)
    session = open_session(make(kind, name="model.onnx", io=io, **body))

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        height=st.integers(1, 70),
        width=st.integers(1, 70),
        tile=st.sampled_from(["auto", 24, 40, *([] if net == "one size" else [0])]),
        halo=st.integers(reach, 8),
        queued=st.booleans(),
    )
    def holds(height: int, width: int, tile: Any, halo: int, queued: bool) -> None:
        lr = noise(height, width, 3)
        with Upscaler(session, tile=tile, halo=halo) as up:
            hr = up.submit(lr).result() if queued else up.upscale(lr)
            pad = up.plan(height, width).halo
        assert np.abs(hr - bare(right, lr, pad)).max() <= 1.01

    holds()
    session.close()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 40), width=st.integers(1, 40), halo=st.integers(1, 12))
def test_untiled_repeats_exactly_the_halo(make, noise, height, width, halo):
    """Less than the halo that was measured leaves a rim, and more is computed for nothing."""
    path = make("convolved", layers=4)
    lr = noise(height, width, 3)
    with Upscaler(path, tile=0, halo=halo) as up:
        assert up.plan(height, width).tile == (height + 2 * halo, width + 2 * halo)
        assert np.abs(up.upscale(lr) - bare(path, lr, halo, multiple=1)).max() <= 0.51


@pytest.mark.parametrize(
    "io", [{}, {"form": "uint8"}, {"size": (1, 40, 48)}], ids=["float", "uint8", "one size"]
)
@pytest.mark.parametrize("tile", ["auto", 30])
def test_one_colour_comes_out_as_one_colour(make, io, tile):
    """A flat picture had a rim of up to 94 levels."""
    with Upscaler(make("convolved", scale=1, layers=4, io=io), tile=tile, halo=4) as up:
        for colour in ((255, 255, 255), (0, 255, 0), (40, 90, 200)):
            made = up.upscale(np.full((33, 45, 3), colour, np.uint8))
            # Kernels of other widths may sum in another order.
            assert np.ptp(made, axis=(0, 1)).max() <= 1


def test_zero_is_the_bare_net_and_so_is_run(make, noise):
    """What PyTorch computes must stay to be had, and a batch on a device is not copied to be padded."""
    path, lr = make("convolved", layers=3), noise(21, 34, 3)
    expected = bare(path, lr, multiple=1)
    with Upscaler(path, edge="zero") as up:
        assert np.abs(up.upscale(lr) - expected).max() <= 0.51
    batch = np.ascontiguousarray(lr.transpose(2, 0, 1)[None] / np.float32(255))
    with Upscaler(path) as up:
        run = np.asarray(up.run(batch))[0].transpose(1, 2, 0).clip(0, 1) * 255
        assert np.abs(up.upscale(lr) - expected).max() > 5
    assert np.abs(run - expected).max() < 0.01


def test_alpha_has_an_edge_of_its_own(make, noise):
    """Transparency that ends at the picture's border would be drawn a rim where colour has none."""
    lr = np.repeat(noise(1, 40, 4), 30, axis=0)
    lr[..., 3] |= 1
    with Upscaler(make("convolved", scale=1, layers=3), tile=24, halo=3) as up:
        made = up.upscale(lr).astype(int)
    assert np.ptp(made[0, :, 3]) > 50
    assert np.abs(made - made[:1]).max() <= 1


def test_frames_of_a_stream_go_with_their_edge_in_one_shape(make, noise):
    """A second shape is a second CUDA graph, and a frame padded otherwise flickers at the border."""
    path, frame = make("convolved", layers=3, io={"form": "uint8"}), noise(30, 41, 3)
    with Upscaler(path, halo=3) as up:
        made = [up.upscale(frame), *up.stream([frame] * 3)]
    right = bare(make("convolved", name="right.onnx", layers=3), frame, 3, multiple=1)
    for one in made:
        np.testing.assert_array_equal(one, made[0])
    assert np.abs(made[0] - right).max() <= 1.01


@pytest.mark.parametrize("form", ["uint8", "float"])
def test_a_plan_sees_the_edge_repeated(rig, noise, form):
    """TensorRT pads with zeros as everybody does. Its engine is simulated here, and blackens its outermost pixels."""
    gpu = rig(form=form)
    compute, reach = gpu.engine.compute, 3

    def with_rim(shape: tuple[int, ...], addresses: dict[str, int], memory: tuple[int, int]) -> None:
        rows, columns = (1, 2) if form == "uint8" else (2, 3)
        size = int(np.prod(shape)) * (1 if form == "uint8" else 2)
        kind = np.uint8 if form == "uint8" else np.float16
        batch = np.frombuffer(gpu.driver.array(addresses["input"], size), kind).reshape(shape)
        for axis, side in ((rows, shape[rows]), (columns, shape[columns])):
            batch.swapaxes(0, axis)[[*range(reach), *range(side - reach, side)]] = 0
        compute(shape, addresses, memory)

    gpu.engine.compute = with_rim
    lr = noise(50, 90, 3)
    session = gpu.open()
    for tile in ("auto", 20):
        with Upscaler(session, tile=tile, halo=3) as up:
            np.testing.assert_array_equal(up.upscale(lr), lr.repeat(2, 0).repeat(2, 1))
    session.close()


def test_graph_and_checkpoint_agree_to_the_border(tiny_export, noise):
    """A service that changes from PyTorch to a graph would see its pictures' borders change."""
    lr = noise(14, 19, 3)
    for options in ({"halo": 6}, {"halo": 6, "tile": 20}):
        made = []
        for path in (tiny_export.parent / "net.pth", tiny_export / "model.onnx"):
            with Upscaler(path, threads=1, **options) as up:
                made.append(up.upscale(lr).astype(int))
                pad = up.plan(*lr.shape[:2]).halo
        assert np.abs(made[0] - made[1]).max() <= 1
    assert np.abs(made[1] - bare(tiny_export / "model.onnx", lr, pad, multiple=1)).max() <= 1.01


def test_no_padded_copy_of_a_large_picture_is_made(make, tmp_path):
    """A memory map that is as large as memory would be read into it for the sake of a rim."""
    shape = (1500, 2000, 3)
    np.lib.format.open_memmap(tmp_path / "in.npy", "w+", np.uint8, shape)[:] = (250, 128, 3)
    lr = np.load(tmp_path / "in.npy", mmap_mode="r")
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.uint8, shape)
    with Upscaler(make("convolved", scale=1, layers=1), tile=128, halo=1, streams=1) as up:
        tracemalloc.start()
        up.upscale(lr, out=out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert np.ptp(out, axis=(0, 1)).max() <= 1
    assert peak < lr.nbytes / 2


def test_a_net_of_one_size_says_that_a_whole_picture_has_no_room_for_its_edge(make, noise):
    """Without a word it would pad with zeros what every other graph repeats."""
    path, lr = make("convolved", layers=3, io={"size": (1, 24, 32)}), noise(24, 32, 3)
    with (
        Upscaler(path, tile=0, halo=3) as up,
        pytest.raises(InferenceError, match=r"with 3 of repeated edge.*'zero'"),
    ):
        up.upscale(lr)
    with Upscaler(path, tile=0, halo=3, edge="zero") as up:
        assert up.upscale(lr).shape == (48, 64, 3)


def test_the_command_repeats_the_edge_unless_it_is_told_zero(make, tmp_path, capsys):
    """Whoever compares with PyTorch needs its rim, and nobody else does."""
    Image.new("RGB", (30, 20), (200, 40, 90)).save(tmp_path / "in.png")
    model = str(make("convolved", scale=1, layers=3))
    spreads = []
    for options in ([], ["--edge", "repeat"], ["--edge", "zero"]):
        out = str(tmp_path / "out.png")
        arguments = [str(tmp_path / "in.png"), "-o", out, "--model", model, "--force", *options]
        assert main(arguments) == 0, capsys.readouterr().err
        spreads.append(int(np.ptp(np.asarray(Image.open(out)), axis=(0, 1)).max()))
    assert spreads[0] <= 1
    assert spreads[1] <= 1
    assert spreads[2] > 10
    with pytest.raises(SystemExit):
        main([str(tmp_path / "in.png"), "--edge", "mirror"])
    with pytest.raises(ValueError, match="edge is 'mirror'; it is 'repeat' or 'zero'"):
        Upscaler(model, edge="mirror")
