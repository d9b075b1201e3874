"""From a torch module to an ONNX graph with dynamic batch, height and width."""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import nn

from esrgan_deploy._errors import ExportError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.graphs._fold_and_nest import fold_input
from esrgan_deploy.export.nets import empty_net

__all__ = ["trace"]

OPSETS = range(17, 24)


def trace(module: nn.Module, spec: ModelSpec, *, opset: int = 20) -> ir.Model:
    """Trace a generator to the float form: ``input`` (N, C, H, W) RGB 0..1 fp32 to ``output``, same layout.

    A pixel-unshuffle in front becomes one SpaceToDepth node: traced, it is a chain of reshapes whose symbolic
    sizes break TensorRT builds. No source path or stack trace is left in the graph.

    Args:
        module: The generator, float32, in eval mode.
        spec: What it is.
        opset: ONNX operator set, 17 to 23.

    Raises:
        ExportError: The opset is not one of those, or torch.onnx cannot trace the module.
    """
    if opset not in OPSETS:
        raise ExportError(
            f"opset {opset} is not written; 17 to 23 are, and 20 suits TensorRT 10.13 and later"
        )
    traced, folded = module, spec
    if spec.architecture == "rrdbnet" and spec.unshuffle > 1:
        # The net behind the fold has the same parameters under the same names, and is traced alone.
        folded = dataclasses.replace(
            spec,
            in_channels=spec.in_channels * spec.unshuffle**2,
            scale=spec.scale * spec.unshuffle,
            unshuffle=1,
            size_multiple=1,
        )
        traced = empty_net(folded)
        traced.load_state_dict(module.state_dict(), assign=True)
        traced = traced.eval().requires_grad_(False)
    model = _torch_export(traced, folded, opset)
    if folded is not spec:
        fold_input(model, spec.unshuffle)
    _name_dimensions(model, spec)
    common.ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "esrgan-deploy", ""
    model.graph.name = spec.architecture
    return model


def _torch_export(module: nn.Module, spec: ModelSpec, opset: int) -> ir.Model:
    # Sides that differ and are multiples of what this net's size_multiple asks for, so that nothing specialises.
    unit = spec.size_multiple * -(-16 // spec.size_multiple)
    example = torch.zeros(2, spec.in_channels, 3 * unit, 2 * unit)
    shape = {0: "batch", 2: "height", 3: "width"}
    if spec.size_multiple > 1:
        m = spec.size_multiple
        shape = {0: "batch", 2: m * torch.export.Dim("rows"), 3: m * torch.export.Dim("columns")}  # type: ignore[dict-item]
    with _quiet():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=(shape,),
                verbose=False,
            )
        except Exception as error:
            # torch.onnx raises a dozen types, with pages of text; its first line is the reason.
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ExportError(
                f"torch.onnx cannot trace this {spec.architecture}: {reason}. Try another --opset"
            ) from error
    assert program is not None
    return program.model


def _name_dimensions(model: ir.Model, spec: ModelSpec) -> None:
    source, result = model.graph.inputs[0], model.graph.outputs[0]
    source.shape = ir.Shape(["batch", spec.in_channels, "height", "width"])
    scale = "" if spec.scale == 1 else f"{spec.scale}*"
    result.shape = ir.Shape(["batch", spec.out_channels, f"{scale}height", f"{scale}width"])
    for node in model.graph:
        for value in node.outputs:
            if value is not result:
                # Intermediate names of the tracer no longer fit once the graph is rewritten.
                value.shape = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter warns of torchvision's absence and of its own deprecations: nothing a user can act on.
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
