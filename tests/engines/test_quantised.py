"""Quantised graphs of the exporter as TensorRT for RTX builds them, which needs no GPU."""

import functools

import numpy as np
import pytest
import torch

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy.engines import BuildOptions, ShapeRange, declared_bytes_per_pixel, engine_from_onnx
from esrgan_deploy.engines._build import refuse_other_precision
from esrgan_deploy.engines._graph import read_graph
from esrgan_deploy.export.graphs import (
    Recipe,
    clone,
    fold_scales,
    nest_concats,
    quantise,
    save,
    to_precision,
    trace,
    weight_steps,
)
from esrgan_deploy.export.nets import RRDBNet, layers

DENSE, TAIL = ("body",), ("body", "tail")
SIDE = 128


@pytest.fixture(scope="module")
def net(rrdb_spec):
    """An RRDB of the usual width, and of two blocks: its module, its graph, its specification."""
    spec = rrdb_spec(features=64, growth=32, blocks=2)
    torch.manual_seed(0)
    module = RRDBNet(spec).eval().requires_grad_(False)
    graph = trace(module, spec, opset=20)
    nest_concats(graph)
    fold_scales(graph)
    return module, graph, spec


@pytest.fixture(scope="module")
def written(net, tmp_path_factory):
    """Write the graph with places quantised: ``written({"body": "fp8"}, per_channel=False)``."""
    module, graph, spec = net
    folder = tmp_path_factory.mktemp("graphs")

    def write(kinds, *, per_channel=False):
        found, made = layers(spec), clone(graph)
        formats = {layer.name: kinds[layer.place] for layer in found if layer.place in kinds}
        recipe = Recipe(
            formats=formats,
            activations={layer.group: 0.015625 for layer in found},
            weights={
                layer.name: weight_steps(
                    module.get_submodule(layer.name).weight.numpy(),
                    layer,
                    formats[layer.name],
                    per_channel=per_channel,
                )
                for layer in found
                if layer.name in formats
            },
        )
        if formats:
            quantise(made, found, recipe)
        path = folder / f"{'-'.join(map('.'.join, kinds.items()))}-{per_channel}.onnx"
        save(to_precision(made, "fp16"), path)
        return path

    return write


@pytest.fixture(scope="module")
def built(written):
    """Build that graph for one size; each once."""
    options = BuildOptions(flavour="tensorrt_rtx", shapes=ShapeRange.fixed((1, SIDE, SIDE)))

    @functools.cache
    def build(kinds, per_channel=False, expect=None):
        path = written(dict(kinds), per_channel=per_channel)
        return engine_from_onnx(path, path.with_suffix(".plan"), options, expect_precision=expect, force=True)

    return build


def _same(places, kind):
    return tuple((place, kind) for place in places)


@pytest.mark.slow
def test_convolutions_are_counted_behind_concatenations_and_by_format(written):
    """Only the first of a dense block reads a Q/DQ pair directly: the other four could be fp16 unseen."""
    mixed = read_graph(written({"body": "fp8", "tail": "int8"}))
    assert (mixed.convolutions, mixed.quantised) == (36, {"fp8": 30, "int8": 4})
    plain = read_graph(written({}))
    assert (plain.convolutions, plain.quantised) == (36, {})
    # Each figure of the plan has to reach the graph's, whichever precision was asked for.
    for precision in ("int8", "fp8"):
        refuse_other_precision({"fp16": 2, "fp8": 30, "int8": 4}, precision, mixed)
        for kernels in ({"fp16": 3, "fp8": 29, "int8": 4}, {"fp16": 3, "fp8": 30, "int8": 3}, {"fp8": 36}):
            with pytest.raises(EngineBuildError, match=r"at least 30 in fp8") as caught:
                refuse_other_precision(kernels, precision, mixed)
            assert "at least 4 in int8" in str(caught.value)
    with pytest.raises(EngineBuildError, match="expected at least 1 in int8"):
        refuse_other_precision({"fp16": 36}, "int8", plain)


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_kernels_are_of_the_format(built, kind, per_channel):
    """A convolution that stayed fp16 costs what it did, and rounds its input for nothing."""
    result = built(_same(TAIL, kind), per_channel, kind)
    assert result.dtypes == {"fp16": 2, kind: 34}
    _read_and_hold(result, {kind: 34})


@pytest.mark.slow
def test_both_formats_in_one_plan(built):
    """The search may keep the tail in another format than the dense blocks."""
    result = built((("body", "fp8"), ("tail", "int8")), expect="int8")
    assert result.dtypes == {"fp16": 2, "fp8": 30, "int8": 4}
    _read_and_hold(result, {"fp8": 30, "int8": 4})


@pytest.mark.slow
def test_fp8_takes_few_channels_too(built):
    """Of 3 channels read or made: ModelOpt leaves out whatever has 16 or fewer; the builder does not."""
    result = built(_same(("first", "body", "tail", "last"), "fp8"), expect="fp8")
    assert result.dtypes == {"fp8": 36}
    _read_and_hold(result, {"fp8": 36})
    few = [layer for layer in result.layers if layer.convolution and min(_channels(layer)) <= 4]
    assert len(few) == 2


def _channels(layer):
    return layer.inputs[0].dims[1], layer.outputs[0].dims[1]


def _read_and_hold(result, counts):
    """Both the tensor that a kernel reads and the weights that it holds are of the format."""
    for kind, count in counts.items():
        kernels = [layer for layer in result.layers if layer.convolution and layer.dtype == kind]
        assert len(kernels) == count
        for layer in kernels:
            assert layer.inputs[0].dtype == kind
            (weights,) = (
                tensor for tensor in layer.weights if len(tensor.dims) == 4 and tensor.dims[2:] == (3, 3)
            )
            assert weights.dtype == kind


@pytest.mark.slow
def test_fp8_with_one_step_a_tensor_moves_less_than_fp16(built):
    """With a step for each channel the kernels write fp32: the choice of the default rests on it."""
    moved = {
        name: declared_bytes_per_pixel(built(kinds, per_channel).layers, SIDE * SIDE)
        for name, kinds, per_channel in (
            ("fp16", (), False),
            ("tensor", _same(DENSE, "fp8"), False),
            ("channel", _same(DENSE, "fp8"), True),
        )
    }
    assert moved["tensor"] < 0.92 * moved["fp16"] < moved["fp16"] < moved["channel"]
    assert np.isclose(moved["fp16"], 30134, atol=1)
