"""An .onnx handed in instead of a checkpoint."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import CheckpointError, ExportError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._spec import METADATA_KEY, ModelSpec
from esrgan_deploy.export.graphs import conform, to_bytes, widen
from esrgan_deploy.export.proof import Reference, run, session_of
from esrgan_deploy.runtime import SessionOptions
from esrgan_deploy.runtime.sessions.onnx import AdaptedGraph, Ends, measured_ends, missing_data

__all__ = ["load_onnx"]

_NEED = "an fp32 or fp16 graph with one picture (N, C, H, W) in and one out is what can be exported"


def load_onnx(
    path: Path, said: SessionOptions, *, say: Callable[[str], None]
) -> tuple[ir.Model, ModelSpec, Reference]:
    """Read a graph, find out what it is by running it, and rename its ends to ``input`` and ``output``.

    One that others made in another range, layout or in fp16 is brought to the float form; see `conform`.

    Args:
        path: The ``.onnx`` file.
        said: Its ``range``, ``layout`` and ``output_name`` are not measured.
        say: Receives a line where it was brought to another form.

    Returns:
        The graph, its specification (architecture ``"onnx"`` unless the graph was made by this package), and
        the reference: the graph as it came, in ONNX Runtime, fp32.

    Raises:
        CheckpointError: It is not a readable ONNX file, or not a graph of that form.
        ExportError: Its operator set cannot be brought to at least 17.
        InferenceError: Its range, layout or output stay open.
    """
    # Not every exporter writes down what its tensors are, and half precision has to know which are floats.
    proto = onnx.shape_inference.infer_shapes(_modern(_read(path), path))
    model = ir.serde.deserialize_model(proto)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    session, ends = _float_form(model, path, said)
    _check_ends(model, path)
    session = session_of(to_bytes(model)) if session is None else session
    if ends is not None and not ends.plain:
        say(f"{path.name}: its own form is {ends}, written as NCHW 0..1")
    if ends is not None and ends.doubt:
        say(f"warning: {path.name}: {ends.doubt}")

    def reference(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return run(session, batch)[0].astype(np.float32, copy=False)

    spec = _known_spec(model) or _measured_spec(reference, model, path)
    if ends is not None and ends.failure:
        raise CheckpointError(
            f"{path} ran on no grey picture ({ends.failure}), so that its range stays open; say it: --range 1 or 255"
        )
    model.metadata_props.clear()
    common.ClearMetadataAndDocStringPass()(model)
    return model, dataclasses.replace(spec, source_sha256=sha256_of(path)), reference


def _name_the_default_domain(proto: onnx.ModelProto) -> None:
    # Two names of one thing, and what reads the graph here knows the empty one.
    for entry in (*proto.opset_import, *proto.graph.node):
        if entry.domain == "ai.onnx":
            entry.domain = ""


def _read(path: Path) -> onnx.ModelProto:
    missing = missing_data(path) if path.is_file() else ""
    if missing:
        raise CheckpointError(
            f"{path} keeps its weights in {path.parent / missing}, which is not there; put it beside the graph"
        )
    try:
        proto = onnx.load(path)
        _name_the_default_domain(proto)
        # IR 3 lists every initialiser as an input, which the converter of operator sets does not know.
        weights = {tensor.name for tensor in proto.graph.initializer}
        kept = [value for value in proto.graph.input if value.name not in weights]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        proto.ir_version = max(proto.ir_version, 8)
        onnx.checker.check_model(proto)
    except Exception as error:
        # protobuf, onnx and its C++ side each raise their own.
        raise CheckpointError(f"{path} is not a valid ONNX graph: {one_line(error)[:200]}") from error
    return proto


def _float_form(model: ir.Model, path: Path, said: SessionOptions) -> tuple[Any, Ends | None]:
    """Bring a foreign graph to the float form.

    Returns:
        The graph as it came, to run as one of that form, and what it takes and gives; None where the graph need not
        change, or will be refused.

    Raises:
        CheckpointError: It says itself what it takes and options say it too, or one of its ends is uint8.
    """
    if METADATA_KEY in model.metadata_props:
        if said.describes:
            raise CheckpointError(
                f"{path} was made by esrgan-export and says itself what it takes and gives; "
                "leave --range, --layout and --output-name away"
            )
        return None, None
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == ir.DataType.UINT8:
            raise CheckpointError(f"{path}: {value.name} is uint8; {_NEED}. {_as_it_is(path)}")
    widen(model)
    session = session_of(to_bytes(model))
    ends = measured_ends(session, path, said)
    if ends is None:
        return None, None
    if not ends.plain:
        conform(model, ends)
        session = AdaptedGraph(session, ends)
    source = model.graph.inputs[0]
    if source.shape is not None and not isinstance(source.shape[1], int):
        # As it was measured.
        source.shape = ir.Shape([source.shape[0], 3, *source.shape[2:]])
    return session, ends


def _as_it_is(path: Path) -> str:
    return f"Run it as it is: esrgan-upscale picture.png --model {shlex.quote(str(path))}"


def _modern(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    opset = next((entry.version for entry in proto.opset_import if not entry.domain), 0)
    foreign = sorted({node.domain for node in proto.graph.node} - {""})
    if foreign:
        raise CheckpointError(
            f"{path} uses operators of {', '.join(foreign)}, and only standard ONNX is known"
        )
    if opset >= 17:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, 20)
    except Exception as error:
        raise ExportError(
            f"{path} is of opset {opset}, and bringing it to 20 failed ({one_line(error)[:160]}). "
            "Export it again with opset 17 to 23"
        ) from error


def _check_ends(model: ir.Model, path: Path) -> None:
    graph = model.graph
    common.RemoveInitializersFromInputsPass()(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise CheckpointError(
            f"{path} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; {_NEED}"
        )
    for value in (graph.inputs[0], graph.outputs[0]):
        if value.dtype != ir.DataType.FLOAT:
            raise CheckpointError(f"{path}: {value.name} is {value.dtype}; {_NEED}")
    source = graph.inputs[0]
    shape = source.shape
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        raise CheckpointError(f"{path}: {source.name} has the shape {shape}; {_NEED}")
    if isinstance(shape[2], int) or isinstance(shape[3], int):
        raise CheckpointError(
            f"{path}: its height and width are fixed at {shape[2]}x{shape[3]}. "
            f"Export it again with both dynamic, or give the checkpoint itself. {_as_it_is(path)}"
        )
    source.name, graph.outputs[0].name = "input", "output"
    source.shape = ir.Shape(["batch", shape[1], "height", "width"])
    for node in graph.all_nodes():
        for value in node.outputs:
            if value is not graph.outputs[0]:
                # Its author's "height" need not be ours, and ONNX Runtime puts what has equal names in one place.
                value.shape = None


def _known_spec(model: ir.Model) -> ModelSpec | None:
    facts = model.metadata_props.get(METADATA_KEY)
    if facts is None:
        return None
    try:
        data = json.loads(facts)
        whole = (
            data["precision"] == "fp32"
            and data["form"] == "float"
            and data["outscale"] == data["spec"]["scale"]
        )
        return ModelSpec.from_json(data["spec"]) if whole else None
    except (ValueError, KeyError, TypeError):
        return None


def _measured_spec(reference: Reference, model: ir.Model, path: Path) -> ModelSpec:
    assert model.graph.inputs[0].shape is not None
    channels = model.graph.inputs[0].shape[1]
    assert isinstance(channels, int)
    for multiple in (1, 2, 4, 8, 16):
        height, width = 17 * multiple, 19 * multiple
        try:
            out = reference(np.full((2, channels, height, width), 0.5, np.float32))
        except ExportError as error:
            failure = error
            continue
        n, channels_out, *sides = out.shape
        scale = sides[0] // height
        if n != 2 or sides != [height * scale, width * scale] or scale == 0:
            raise CheckpointError(f"{path} makes {out.shape} of {(2, channels, height, width)}; {_NEED}")
        model.graph.outputs[0].shape = ir.Shape(["batch", channels_out, f"{scale}*height", f"{scale}*width"])
        return ModelSpec(
            architecture="onnx",
            scale=scale,
            in_channels=channels,
            out_channels=channels_out,
            features=0,
            blocks=0,
            growth=0,
            size_multiple=multiple,
            source_sha256="",
        )
    raise CheckpointError(f"{path} runs at no size that was tried: {one_line(failure)[:200]}")
