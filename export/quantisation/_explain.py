"""Which convolutions of a quantised graph cost the parity, and by how much."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.nn import functional

from esrgan_deploy._errors import ExportError, MissingDependencyError
from esrgan_deploy._manifest import Artefact, Manifest
from esrgan_deploy.export.graphs import (
    Array,
    apply_parameters_to_graph,
    clone,
    rounding_model,
    runs_as_it_is,
    to_bytes,
)
from esrgan_deploy.export.nets import layers
from esrgan_deploy.export.proof import golden_pictures, graph_input, run, session_of
from esrgan_deploy.export.quantisation._recipe_file import load_recipe
from esrgan_deploy.export.quantisation.calibration import SCENES, draw

__all__ = ["errors_table", "explain_quantised", "layer_errors"]


_SIDE = 48
"""Of the drawn pictures that it is looked at on, in pixels: every tensor of the net is in memory at once."""

_KINDS = {ir.DataType.INT8: "int8", ir.DataType.UINT8: "uint8", ir.DataType.FLOAT8E4M3FN: "fp8"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerError:
    """The error of one convolution, in dB of power below its fp32 output; the nearer to 0 the worse.

    Attributes:
        name: The convolution.
        kind: ``"int8"``, ``"uint8"`` or ``"fp8"``; ``"fp16"`` or ``"fp32"`` where it is not quantised.
        own: Of the error that it adds: its output less that of the fp32 convolution on the same input, as that
            arrives before it is rounded. -inf where it adds none, inf where its output is not finite.
        total: Of its output less that of the fp32 graph, what went before included.
    """

    name: str
    kind: str
    own: float
    total: float


def explain_quantised(folder: Path, artefact: Artefact, manifest: Manifest) -> str:
    """Compare a quantised graph of an export with the fp32 graph, convolution by convolution.

    That is the interchange graph with the recipe's rewritten parameters, so that what is left is rounding.

    Args:
        folder: The export.
        artefact: The graph, with a file of scales beside it.
        manifest: Of the export.

    Returns:
        A table of several lines, or one line that says what is missing.

    Raises:
        ExportError: The files do not belong together.
    """
    scales = folder / f"{artefact.file.removesuffix('.onnx')}.scales.json"
    reference = ir.load(folder / "model.onnx")
    apply_parameters_to_graph(reference, layers(manifest.spec), load_recipe(scales).recipe.parameters)
    pictures = _pictures(manifest, artefact.size_multiple)
    try:
        found = layer_errors(reference, folder / artefact.file, artefact.precision, pictures)
    except MissingDependencyError as error:
        return f"{artefact.file}: its errors were not compared layer by layer ({error})"
    return f"{artefact.file}, layer by layer on drawn pictures:\n{errors_table(found)}"


def errors_table(found: Sequence[LayerError]) -> str:
    """Return the convolutions as text, and a sentence on the one that adds most for its output."""
    lines = [f"{'convolution':28} {'format':6} {'own':>7} {'total':>7}  (dB below its output)"]
    lines += [f"{layer.name:28} {layer.kind:6} {layer.own:7.1f} {layer.total:7.1f}" for layer in found]
    worst = max(found, key=lambda layer: layer.own)
    return "\n".join([*lines, f"{worst.name} adds most for its output, {worst.own:.1f} dB below it"])


def layer_errors(
    reference: ir.Model, quantised: Path, precision: str, pictures: Sequence[npt.NDArray[np.uint8]]
) -> list[LayerError]:
    """Run both graphs in ONNX Runtime, their tensors marked as outputs, and compare them.

    Args:
        reference: The rewritten fp32 graph in the float form, with the recipe's parameters applied: weights that
            were equalised or learned are no error.
        quantised: The graph that was made of it, in either form.
        precision: Its precision.
        pictures: Each ``(N, H, W, C)`` uint8.

    Returns:
        The convolutions in the order in which they run. The last one is left out where the graph makes blocks of the
        picture with it, as that for processors does.

    Raises:
        ExportError: The graphs do not have the same convolutions.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    exact, graph = clone(reference), ir.load(quantised)
    if not runs_as_it_is(precision):
        graph = rounding_model(graph, precision)
    pairs = list(zip(_convolutions(exact), _convolutions(graph), strict=False))
    known, has = len(_convolutions(exact)), len(_convolutions(graph))
    inputs = [_unrounded(conv.inputs[0]) for _, conv in pairs]
    wanted = _runs(exact, [conv.outputs[0] for conv, _ in pairs], pictures)
    outputs = [_undoubled(conv) for _, conv in pairs]
    marked = [*outputs, *(part for parts in inputs for part in parts)]
    powers: dict[int, list[tuple[float, float, float]]] = {}
    for expected, made in zip(wanted, _runs(graph, marked, pictures), strict=True):
        for number, ((layer, conv), parts) in enumerate(zip(pairs, inputs, strict=True)):
            signal, out = expected[_name(layer.outputs[0])], made[_name(outputs[number])]
            if signal.shape != out.shape:
                continue
            read = np.concatenate([made[_name(part)] for part in parts], axis=1)
            if conv.op_type == "ConvTranspose":
                # It reads what the other convolution reads enlarged.
                read = read.repeat(2, axis=2).repeat(2, axis=3)
            own = out - _convolved(layer, read)
            powers.setdefault(number, []).append((_power(signal), _power(own), _power(out - signal)))
    if known != has or len(powers) < known - 1:
        raise ExportError(
            f"{quantised} has {has} convolutions that are not those of the fp32 graph, which has {known}; "
            "give the model.onnx that was written with it"
        )
    return [
        LayerError(
            name=_name(layer.inputs[1]).removesuffix(".weight"),
            kind=_kind(conv.inputs[0]) or ("fp32" if runs_as_it_is(precision) else "fp16"),
            own=_decibels(powers[number], 1),
            total=_decibels(powers[number], 2),
        )
        for number, (layer, conv) in enumerate(pairs)
        if number in powers
    ]


def _runs(
    model: ir.Model, marked: Sequence[ir.Value], pictures: Sequence[npt.NDArray[np.uint8]]
) -> Iterator[dict[str, Array]]:
    for value in dict.fromkeys(marked):
        if value not in model.graph.outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(value)
    session = session_of(to_bytes(model))
    names = [output.name for output in session.get_outputs()]
    for picture in pictures:
        outputs = run(session, graph_input(session, picture))
        yield {name: out.astype(np.float32) for name, out in zip(names, outputs, strict=True)}


def _convolutions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in ("Conv", "ConvTranspose")]


def _producer(value: ir.Value | None) -> ir.Node | None:
    # Behind the casts of `rounding_model`.
    node = value.producer() if value is not None else None
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _unrounded(value: ir.Value | None) -> list[ir.Value]:
    """Return what a convolution would read without Q/DQ pairs, as the tensors that are concatenated."""
    assert value is not None
    node = _producer(value)
    if node is not None and node.op_type == "Concat":
        return [part for one in node.inputs for part in _unrounded(one)]
    if node is not None and node.op_type == "DequantizeLinear":
        quantise = _producer(node.inputs[0])
        # The graph for processors enlarges integers: what was rounded has another size.
        if quantise is not None and quantise.op_type == "QuantizeLinear" and quantise.inputs[0] is not None:
            return [_unmultiplied(quantise.inputs[0])]
    return [value]


def _unmultiplied(value: ir.Value) -> ir.Value:
    """Return what was multiplied, channel by channel, to be quantised."""
    node = _producer(value)
    if node is None or node.op_type != "Mul" or node.inputs[0] is None:
        return value
    factors = _constant(node.inputs[1])
    return node.inputs[0] if factors is not None and factors.size > 1 else value


def _undoubled(conv: ir.Node) -> ir.Value:
    """Return a convolution's output, which in a graph for plans may be twice that, see `form_for_plans`."""
    node, out = conv, conv.outputs[0]
    while len(readers := list(node.outputs[0].consumers())) == 1 and readers[0].op_type in ("Cast", "Mul"):
        node = readers[0]
        factor = _constant(node.inputs[1]) if node.op_type == "Mul" else None
        if factor is not None and factor.size == 1:
            return node.outputs[0] if float(factor.reshape(())) == 0.5 else out
    return out


def _constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    # `rounding_model` casts constants too.
    while value is not None and (node := value.producer()) is not None and node.op_type == "Cast":
        value = node.inputs[0]
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _kind(value: ir.Value | None) -> str | None:
    node = _producer(value)
    while node is not None and node.op_type == "Concat":
        node = _producer(node.inputs[0])
    zero = node.inputs[2] if node is not None and node.op_type == "DequantizeLinear" else None
    return None if zero is None or zero.dtype is None else _KINDS[zero.dtype]


def _convolved(conv: ir.Node, x: Array) -> Array:
    weight, bias = (
        torch.from_numpy(np.array(value.const_value.numpy()))
        for value in conv.inputs[1:]
        if value is not None and value.const_value is not None
    )
    # FP8 reads some channels again behind the others: what the rounding left of them.
    taken = torch.from_numpy(x[:, : weight.shape[1]])
    out: Array = functional.conv2d(taken, weight, bias, padding=weight.shape[2] // 2).numpy()
    return out


def _power(x: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.square(x, dtype=np.float64).mean())


def _decibels(powers: Sequence[tuple[float, float, float]], which: int) -> float:
    signal, error = (sum(power[index] for power in powers) for index in (0, which))
    if not np.isfinite(error):
        return float("inf")
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.float64(error) / signal)) if signal else float("-inf")


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name


def _pictures(manifest: Manifest, multiple: int) -> list[npt.NDArray[np.uint8]]:
    channels = manifest.spec.in_channels
    if channels != 3:
        return list(golden_pictures(channels, multiple).values())
    side = -(-_SIDE // multiple) * multiple
    return [draw(scene, side)[None] for scene in SCENES[:4]]
