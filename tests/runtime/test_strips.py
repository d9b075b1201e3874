"""A picture in strips is the picture in one piece, whatever its size, the strips and the net."""

import importlib.resources
import shutil
import tempfile
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from esrgan_deploy import InferenceError, OutOfMemoryError, Upscaler
from esrgan_deploy.runtime import BatchOutput, SessionInfo, _frames, default_model
from esrgan_deploy.runtime.device import MemoryFacts
from esrgan_deploy.runtime.sessions import Block, PartsInfo
from esrgan_deploy.runtime.tiling import Strips, _cutter

# Before rounding: nothing but the order of sums may differ.
HUNDREDTH = 0.01 / 255


def _folded(rows: np.ndarray, step: int) -> np.ndarray:
    return rows.reshape(-1, step) @ np.arange(1, step + 1)


def _computed(block: Block, inputs: list[np.ndarray]) -> np.ndarray:
    """What stands for a block: weighted sums of its first input over its reach, zeros beyond, and the rest added."""
    first, *others = (_folded(rows, step) for rows, (_, step) in zip(inputs, block.inputs, strict=True))
    made = np.convolve(np.pad(first, block.reach), np.arange(1, 2 * block.reach + 2), "valid")
    for other in others:
        made = 3 * made + other
    return made % 10007


@st.composite
def trunks(draw: st.DrawFn) -> tuple[int, list[Block]]:
    """Blocks in a row, some of which read what was made long before."""
    step = draw(st.integers(1, 3))
    blocks: list[Block] = []
    for number in range(draw(st.integers(1, 6))):
        inputs = [(number - 1, step if number == 0 else 1)]
        if number > 1 and draw(st.booleans()):
            inputs.append((draw(st.integers(0, number - 2)), 1))
        blocks.append(Block(draw(st.integers(0, 6)), tuple(inputs)))
    return step, blocks


@given(trunk=trunks(), rows=st.integers(1, 70), strip=st.integers(1, 40))
def test_every_row_is_made_once_and_of_all_that_it_reads(trunk, rows, strip):
    """In whole numbers, where one row more or less shows, and with no block ever above its strip."""
    step, blocks = trunk
    picture = np.random.default_rng(rows).integers(0, 99, rows * step)
    whole: dict[int, np.ndarray] = {-1: picture}
    for number, block in enumerate(blocks):
        whole[number] = _computed(block, [whole[maker] for maker, _ in block.inputs])

    strips, made = Strips(blocks, rows * step, step, strip), []
    kept = [[np.zeros(1, np.int64)] * len(block.inputs) for block in blocks]
    while strips.made < strips.rows:
        start, stop = strips.feed()
        new, numbers = {-1: picture[start:stop]}, list(strips.bounds())
        for number, block in enumerate(blocks):
            fed = []
            for place, (maker, _) in enumerate(block.inputs):
                both = np.concatenate([kept[number][place], new[maker]])
                low, high, keep = numbers.pop(0), numbers.pop(0), numbers.pop(0)
                fed.append(both[low:high])
                kept[number][place] = both[keep:]
            computed = _computed(block, fed)
            assert 0 < len(computed) <= strip + 2 * block.reach
            low, high = numbers.pop(0), numbers.pop(0)
            new[number] = computed[low:high]
        made.append(new[len(blocks) - 1])
    np.testing.assert_array_equal(np.concatenate(made), whole[len(blocks) - 1])


@pytest.mark.parametrize(
    ("size", "edge"),
    [((1, 1), "zero"), ((2, 270), "repeat"), ((270, 1), "zero"), ((61, 83), "repeat")],
    ids=str,
)
def test_a_picture_of_any_size_is_the_same_in_strips_of_any_height(noise, size, edge):
    """With the model that ships, whose parts ship with it."""
    lr = noise(*size, 3, dtype=np.float32)
    with Upscaler(tile=0, edge=edge, threads=1) as up:
        whole = up.upscale(lr)
    # One row at a time where it is one pixel: each number of rows that the tail may find is there once.
    for strip in (1 if lr.shape[1] == 1 else 5, 16, 1000):
        with Upscaler(strip=strip, edge=edge, threads=1) as up:
            assert up.plan(*size).strip == strip
            assert np.abs(up.upscale(lr) - whole).max() <= HUNDREDTH


@settings(max_examples=8, deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 150), strip=st.integers(4, 40), halo=st.integers(0, 9))
def test_samples_are_the_same_too(height, width, strip, halo):
    """Of 8 bits, alpha among them: what is saved does not depend on how it was made."""
    lr = np.random.default_rng(height).integers(0, 256, (height, width, 4), np.uint8)
    made = []
    for how in ({"tile": 0}, {"strip": strip}):
        with Upscaler(halo=halo, threads=1, **how) as up:
            made.append(up.upscale(lr))
    np.testing.assert_array_equal(*made)


def test_large_pictures_go_in_strips_and_small_ones_in_one_piece():
    """Where nothing was asked; in tiles where strips were refused."""
    with Upscaler(threads=1) as up:
        assert up.plan(200, 200).strip == 0
        assert up.plan(2000, 3000).strip > 64
        assert up.plan(2000, 300).strip > up.plan(2000, 30000).strip >= 16
    with Upscaler(strip=0, threads=1) as up:
        assert up.plan(2000, 3000).count > 100


def test_what_cannot_be_is_refused(make):
    """A strip of a graph that has no parts, and strips of tiles."""
    with pytest.raises(InferenceError, match=r"strip is 8 and model\.onnx has no parts.*esrgan-export"):
        Upscaler(make("nearest"), strip=8)
    with pytest.raises(ValueError, match="strip is 8 and tile 64; give one of them"):
        Upscaler(strip=8, tile=64)
    with pytest.raises(ValueError, match="strip is -1"):
        Upscaler(strip=-1)


def test_a_part_is_no_model():
    """Whoever names it means the graph."""
    trunk = default_model().with_name("default.trunk.onnx")
    with pytest.raises(InferenceError, match=r"is a part of a graph.*without \.trunk or \.tail"):
        Upscaler(trunk)


def test_parts_of_another_graph_are_not_taken(tmp_path):
    """A graph that was exported anew beside parts that were not would make another net's picture."""
    folder = importlib.resources.files("esrgan_deploy.models")
    for name in ("default.onnx", "default.trunk.onnx", "default.tail.onnx"):
        shutil.copy(str(folder / name), tmp_path / name)
    with Upscaler(tmp_path / "default.onnx", threads=1) as up:
        assert up.info.parts is not None
    # A tail that belongs to another trunk.
    tail = onnx.load(tmp_path / "default.tail.onnx", load_external_data=False)
    tail.metadata_props[0].value = tail.metadata_props[0].value.replace('"reach": 2', '"reach": 1')
    (tmp_path / "default.tail.onnx").write_bytes(tail.SerializeToString())
    with Upscaler(tmp_path / "default.onnx", threads=1) as up:
        assert up.info.parts is None
    shutil.copy(str(folder / "default.tail.onnx"), tmp_path / "default.tail.onnx")
    with (tmp_path / "default.onnx").open("ab") as file:
        # A field that no reader knows.
        file.write(b"\xfa\x7f\x00")
    with Upscaler(tmp_path / "default.onnx", threads=1) as up:
        assert up.info.parts is None


PARTS = PartsInfo(
    whole="", blocks=(Block(0, ((-1, 1),)),), features=3, step=1, reach=0, scale=2, picture=False
)
DOUBLING = SessionInfo(
    name="doubling", form="float", dtype=np.dtype(np.float32), in_channels=3, out_channels=3, scale=Fraction(2),
    provider="a test", slots=1, parts=PARTS,
)  # fmt: skip


def doubling(advance=lambda rows: rows, tail=BatchOutput):
    """A session whose parts repeat each pixel, and do what a test wants with each piece."""
    parts = SimpleNamespace(
        info=PARTS,
        trunk=lambda width: SimpleNamespace(advance=lambda rows, bounds: advance(rows)),
        tail=lambda features, picture: tail(features.repeat(2, axis=2).repeat(2, axis=3)),
    )
    slot = SimpleNamespace(parts=parts, close=lambda: None)
    return SimpleNamespace(info=DOUBLING, slot=lambda: slot, close=lambda: None)


def test_memory_that_runs_out_makes_lower_strips(noise):
    """And what fitted once is where the next picture begins."""

    def advance(rows):
        if rows.shape[2] > 20:
            raise OutOfMemoryError("no room")
        return rows

    lr = noise(90, 30, 3)
    with Upscaler(doubling(advance), strip=80) as up:
        with pytest.warns(RuntimeWarning) as said:
            made = up.upscale(lr)
        assert [str(one.message).split(". Set")[0] for one in said] == [
            "doubling: memory ran out with strips of 80 rows; going on with 40",
            "doubling: memory ran out with strips of 40 rows; going on with 20",
        ]
        np.testing.assert_array_equal(made, lr.repeat(2, axis=0).repeat(2, axis=1))
        assert up.plan(90, 30).strip == 20
        assert up.stats.halvings == 2


def test_a_picture_that_is_given_up_ends_between_strips(noise):
    """Minutes of a large one would be computed for nobody."""
    begun, pieces = threading.Event(), []

    def tail(made):
        begun.set()
        time.sleep(0.02)
        pieces.append(made.shape)
        return BatchOutput(made)

    up = Upscaler(doubling(tail=tail), strip=16)
    future = up.submit(noise(8000, 10, 3))
    assert begun.wait(60)
    up.close(cancel=True)
    with pytest.raises(InferenceError, match="was closed before this picture was done"):
        future.result(timeout=0)
    # Of 63.
    assert len(pieces) < 50


def test_rows_that_are_in_place_are_let_go_of(noise, monkeypatch):
    """A result beyond memory is a memory map, whose pages must not stay."""
    released: list[tuple[int, int]] = []
    monkeypatch.setattr(_frames, "release_rows", lambda array, *rows: released.append(rows))
    lr = noise(600, 10, 3)
    with tempfile.TemporaryDirectory() as folder, Upscaler(doubling(), strip=16, halo=0) as up:
        out = np.lib.format.open_memmap(f"{folder}/out.npy", "w+", np.uint8, (1200, 20, 3))
        up.upscale(lr, out=out)
    assert released == [(0, 256), (256, 512), (512, 768), (768, 1024), (1024, 1200)]


def test_short_memory_makes_low_strips(monkeypatch):
    """And what is free beyond a gigabyte and a half is left to others, unless strips were too low to be worth it."""
    heights, wide = [], []
    for free in (2**40, 2**33, 2**31, 2**29, 0):
        facts = MemoryFacts(free_bytes=free, l2_bytes=None, kind="processor")
        monkeypatch.setattr(_cutter, "processor_memory", lambda facts=facts: facts)
        with Upscaler(threads=1) as up:
            heights.append(up.plan(2000, 2000).strip)
            wide.append(up.plan(2000, 20_000).strip)
    assert heights[0] == heights[1] > heights[2] > heights[3] == heights[4] == 16
    assert heights[0] > wide[0] == 128 > wide[2] == 16


def test_a_strip_that_is_no_picture_is_refused(noise):
    """Black where the picture is not, or NaN: a picture with a black strip is worse than none."""
    black = doubling(tail=lambda made: BatchOutput(made * 0, np.zeros((1, 2), np.float32)))
    lr = noise(90, 30, 3)
    with Upscaler(black, strip=16) as up, pytest.raises(InferenceError, match="one value only"):
        up.upscale(lr)
    # Of a black picture it is one.
    with Upscaler(black, strip=16) as up:
        assert not up.upscale(lr * 0).any()
    with (
        Upscaler(doubling(tail=lambda made: BatchOutput(made * np.nan)), strip=16) as up,
        pytest.raises(InferenceError, match="NaN or infinite"),
    ):
        up.upscale(lr)


def test_a_picture_with_a_bad_strip_is_made_again_with_more_range(tiny_export, tmp_path, noise):
    """By the fp32 graph beside it, in strips too; nothing is left of the bad one."""
    folder = tmp_path / "out"
    shutil.copytree(tiny_export, folder)
    tail = onnx.load(folder / "model.fp16.tail.onnx")
    bias = next(one for one in tail.graph.initializer if one.name == "conv_last.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, np.float16), bias.name))
    onnx.save(tail, folder / "model.fp16.tail.onnx")
    lr, said = noise(90, 20, 3), []
    with Upscaler(folder / "model.onnx", strip=16) as up:
        expected = up.upscale(lr)
    with Upscaler(folder / "model.fp16.onnx", strip=16) as up:
        np.testing.assert_array_equal(up.upscale(lr, progress=lambda *seen: said.append(seen)), expected)
        assert up.stats.reruns == 1
    assert said[-1] == (8, 8)
    assert said == sorted(set(said))


def test_progress_rises_to_the_number_of_strips(noise):
    """For each of what is enlarged one after the other: the colours, and alpha."""
    said: list[tuple[int, int]] = []
    with Upscaler(doubling(), strip=16, halo=0) as up:
        up.upscale(noise(300, 30, 3), progress=lambda *seen: said.append(seen))
    done, total = zip(*said, strict=True)
    assert set(total) == {19}
    assert list(done) == sorted(set(done))
    assert done[-1] == 19
    # The rows come in bands of the tail.
    assert len(said) > 1
