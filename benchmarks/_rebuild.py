"""From a graph of esrgan-export back to the torch module that it was traced from."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._optional import require
from esrgan_deploy._spec import METADATA_KEY, ModelSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["module_from_graph"]

# What the exporter folds into the fifth convolution of each dense block.
RESIDUAL = 0.2


def module_from_graph(path: Path) -> "nn.Module":
    """Rebuild the net of an fp32 graph in the float form, by the names that its weights kept.

    The residual scale is taken out of the weights that it was folded into, and the input channels of a net behind
    a pixel-unshuffle are put back in PyTorch's order. Equal up to a rounding of those weights.

    Returns:
        The module, float32 on the processor, in eval mode, its parameters frozen.

    Raises:
        InferenceError: It is not a graph of an architecture of this package.
        MissingDependencyError: torch or onnx-ir is not installed.
    """
    ir = require("onnx_ir", extra="export")
    torch = require("torch", extra="export")
    from esrgan_deploy.export._dialects import empty_net

    model = ir.load(path)
    spec = _spec(model, path)
    net = empty_net(spec).to_empty(device="cpu")
    known = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    slopes = [node.inputs[1].const_value.numpy() for node in model.graph if node.op_type == "PRelu"]
    folded = _folded(model)
    state = {}
    for name, value in net.state_dict().items():
        found = known.get(name)
        if found is None and value.ndim == 1 and slopes:
            # The one kind of parameter that the tracer renames; there are as many as activations, in order.
            found = slopes.pop(0)
        if found is None or found.size != value.numel():
            raise _refusal(path, f"it holds no {name} of {tuple(value.shape)}")
        array = _unfolded(name, found.reshape(tuple(value.shape)).astype(np.float64), spec, folded)
        state[name] = torch.from_numpy(array.astype(np.float32))
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def _spec(model: Any, path: Path) -> ModelSpec:
    try:
        facts = json.loads(model.metadata_props[METADATA_KEY])
        spec = ModelSpec.from_json(facts["spec"])
        if facts["outscale"] != spec.scale:
            raise _refusal(path, f"it resizes the net's {spec.scale} to {facts['outscale']:g}")
    except (KeyError, TypeError, ValueError) as error:
        raise _refusal(path, "it does not say which net it is") from error
    if spec.architecture not in ("rrdbnet", "srvggnetcompact"):
        raise _refusal(path, f"its architecture is {spec.architecture}")
    return spec


def _folded(model: Any) -> set[str]:
    # The fifth convolutions behind which no multiplication stands any more.
    names = set()
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "Conv" else None
        producer = weight.producer() if weight is not None else None
        if producer is not None and producer.op_type == "Cast":
            weight = producer.inputs[0]
        if weight is None or not re.search(r"\.conv5\.weight$", weight.name or ""):
            continue
        if not any(use.node.op_type == "Mul" for use in node.outputs[0].uses()):
            names.add(weight.name.removesuffix(".weight"))
    return names


def _unfolded(
    name: str, array: npt.NDArray[np.float64], spec: ModelSpec, folded: set[str]
) -> npt.NDArray[np.float64]:
    if name.rpartition(".")[0] in folded:
        return array / RESIDUAL
    if name == "conv_first.weight" and spec.unshuffle > 1:
        # SpaceToDepth orders (row, column, colour) and pixel_unshuffle (colour, row, column).
        features, factor = array.shape[0], spec.unshuffle
        sorted_ = array.reshape(features, factor, factor, spec.in_channels, 3, 3)
        return np.ascontiguousarray(sorted_.transpose(0, 3, 1, 2, 4, 5)).reshape(array.shape)
    return array


def _refusal(path: Path, reason: str) -> InferenceError:
    return InferenceError(
        f"{path.name} cannot be made a PyTorch module again ({reason}). "
        "Give the .pth to compare with PyTorch, or leave torch out of --peers"
    )
