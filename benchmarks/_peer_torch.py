"""PyTorch as a peer, eager and compiled."""

import copy
import os
import shutil
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from esrgan_deploy._errors import InferenceError, MissingDependencyError
from esrgan_deploy._files import CHECKPOINTS
from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks._peer import Peer, PeerTask, version_of
from esrgan_deploy.benchmarks._rebuild import module_from_graph

if TYPE_CHECKING:
    from torch import nn

__all__ = ["open_torch", "open_torch_compiled"]

# Rebuilt from a graph, a module differs by roundings; more than this, and it is another net.
REBUILT = 1e-3


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
        version=version_of("torch") or str(torch.__version__),
        run=run,
        difference=difference,
        close=close,
    )


def _module(task: PeerTask) -> "nn.Module":
    torch = require("torch", extra="export")
    if task.model.suffix.lower() in CHECKPOINTS:
        from esrgan_deploy.export._checkpoint import load_checkpoint

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
