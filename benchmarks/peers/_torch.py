"""PyTorch as a peer, eager and compiled."""

import copy
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError, MissingDependencyError
from esrgan_deploy._files import CHECKPOINTS
from esrgan_deploy._optional import require
from esrgan_deploy._spec import METADATA_KEY, ModelSpec
from esrgan_deploy.benchmarks.peers._protocol import Peer, PeerTask

if TYPE_CHECKING:
    from torch import nn

__all__ = ["module_from_graph", "open_torch", "open_torch_compiled"]


# What the exporter folds into the fifth convolution of each dense block.
RESIDUAL = 0.2

# Rebuilt from a graph, a module differs by roundings; more than this, and it is another net.
REBUILT = 1e-3


def module_from_graph(path: Path) -> "nn.Module":
    """Rebuild the net of an fp32 graph in the float form, by the names that its weights kept.

    The residual scale is taken out of the weights that it was folded into, and the input channels of a net behind
    a pixel-unshuffle are put back in PyTorch's order. Equal up to a rounding of those weights.

    Returns:
        The module, float32 on the processor, in eval mode, its parameters frozen.

    Raises:
        InferenceError: It is not a graph of an architecture of this package.
        MissingDependencyError: torch or onnx-ir is not installed.
    """  # noqa: DOC501  what _refusal returns
    ir = require("onnx_ir", extra="export")
    torch = require("torch", extra="export")
    from esrgan_deploy.export.nets import empty_net

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


def open_torch(task: PeerTask) -> Peer:
    """Open the net in PyTorch as it is: fp32 on the processor, fp16 on an NVIDIA GPU, in the faster layout.

    Raises:
        InferenceError: The graph cannot be made a module again.
        MissingDependencyError: torch is not installed.
    """
    return _open(task, "torch", compiled=False)


def open_torch_compiled(task: PeerTask) -> Peer:
    """Open the net through ``torch.compile``, at the batch's own shape.

    Raises:
        InferenceError: As in `open_torch`.
        MissingDependencyError: torch is not installed, or no C++ compiler where the processor computes.
    """
    torch = require("torch", extra="export")
    compiler = os.environ.get("CXX") or "g++"
    if not torch.cuda.is_available() and shutil.which(compiler) is None and shutil.which("clang++") is None:
        raise MissingDependencyError(
            f"torch.compile needs a C++ compiler and {compiler} is not there. Run: apt-get install g++"
        )
    return _open(task, "torch-compile", compiled=True)


def _open(task: PeerTask, name: str, *, compiled: bool) -> Peer:
    torch = require("torch", extra="export")
    before = torch.get_num_threads()
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    try:
        net = _module(task)
        cuda = torch.cuda.is_available()
        prepare = _on_cuda if cuda else _on_cpu
        layouts = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
        times = {
            layout: _seconds(prepare(net, task, memory_format)) for layout, memory_format in layouts.items()
        }
        fastest = min(times, key=lambda layout: times[layout])
        # Compiled in the layout that is faster eager: compiling 23 blocks takes minutes.
        best = prepare(net, task, layouts[fastest], compiled=compiled)
        _seconds(best)
        difference = task.difference(np.asarray(best().float().cpu().numpy()))
    except BaseException:
        torch.set_num_threads(before)
        raise
    runner = {"run": best}
    del best

    def run() -> object:
        return runner["run"]()

    def close() -> None:
        if runner:
            runner.clear()
            torch.set_num_threads(before)

    where = f"{torch.cuda.get_device_name()}, fp16" if cuda else "CPU, fp32"
    return Peer(
        name=name,
        provider=f"PyTorch {'compiled' if compiled else 'eager'}, {where}, {fastest}",
        version=str(torch.__version__),
        run=run,
        difference=difference,
        close=close,
    )


def _module(task: PeerTask) -> "nn.Module":
    torch = require("torch", extra="export")
    if task.model.suffix.lower() in CHECKPOINTS:
        from esrgan_deploy.export.checkpoints import load_checkpoint

        return load_checkpoint(task.model).module()
    net = module_from_graph(task.graph)
    with torch.inference_mode():
        made = net(torch.from_numpy(task.batch)).numpy()
    difference = task.difference(made)
    if not difference < REBUILT:
        raise InferenceError(
            f"{task.graph.name} made a PyTorch module again computes something else: {difference:.2g} from the "
            f"graph, where {REBUILT:g} is allowed. Give the .pth to compare with PyTorch"
        )
    return net


def _on_cpu(
    net: "nn.Module", task: PeerTask, memory_format: Any, compiled: bool = False
) -> Callable[[], Any]:
    import torch

    # A copy: `to` changes the module itself, and the other layout is wanted too.
    module = copy.deepcopy(net).to(memory_format=memory_format)  # type: ignore[call-overload]
    batch = torch.from_numpy(task.batch).to(memory_format=memory_format)
    call: Callable[[Any], Any] = _compiled(module) if compiled else module

    def run() -> Any:
        with torch.inference_mode():
            return call(batch)

    return run


def _on_cuda(
    net: "nn.Module", task: PeerTask, memory_format: Any, compiled: bool = False
) -> Callable[[], Any]:
    import torch

    module = copy.deepcopy(net).half().cuda().to(memory_format=memory_format)  # type: ignore[call-overload]
    source = torch.from_numpy(task.batch).half().to(memory_format=memory_format).pin_memory()
    target = torch.empty(task.expected.shape, dtype=torch.float16, pin_memory=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    call: Callable[[Any], Any] = _compiled(module) if compiled else module

    def run() -> Any:
        with torch.inference_mode():
            target.copy_(call(source.cuda(non_blocking=True)), non_blocking=True)
            done.record()
            done.synchronize()
        return target

    return run


def _compiled(module: "nn.Module") -> Callable[[Any], Any]:
    import torch

    with warnings.catch_warnings():
        # It deprecates parts of itself as it loads.
        warnings.simplefilter("ignore")
        made: Callable[[Any], Any] = torch.compile(module, dynamic=False)
    return made


def _seconds(run: Callable[[], Any]) -> float:
    # The least of a few after one that compiles, tunes and allocates.
    with warnings.catch_warnings():
        # The compiler does so as it goes, too.
        warnings.simplefilter("ignore")
        run()
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)
