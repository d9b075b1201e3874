"""ncnn as a peer, by way of pnnx."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError, MissingDependencyError
from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks.peers._protocol import Peer, PeerTask

__all__ = ["open_ncnn"]

# A net of 23 blocks took pnnx a minute on two busy cores.
LONGEST = 900.0


def open_ncnn(task: PeerTask) -> Peer:
    """Convert the fp32 graph with the program in pnnx' wheel and load it, on the processor, in fp32.

    ncnn takes one picture at a time: a batch is run picture by picture.

    Raises:
        InferenceError: pnnx cannot convert the graph, or ncnn cannot load or run what it made.
        MissingDependencyError: ncnn or pnnx is not installed.
    """
    ncnn = require("ncnn", extra="peers")
    parameters, weights = _converted(task, _program())
    net = ncnn.Net()
    options = net.opt
    options.use_vulkan_compute = False
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        # Storage of fewer bits is another net than the one that is measured.
        if hasattr(options, f"use_{name}"):
            setattr(options, f"use_{name}", False)
    if task.threads is not None:
        options.num_threads = task.threads
    if net.load_param(str(parameters)) != 0 or net.load_model(str(weights)) != 0:
        raise InferenceError(
            f"ncnn cannot load what pnnx made of {task.graph.name}. Leave ncnn out of --peers"
        )
    source, result = net.input_names()[0], net.output_names()[0]
    pictures = [ncnn.Mat(picture) for picture in task.batch]
    open_nets = [net]

    def run() -> list[Any]:
        return [_run(open_nets[0], source, result, picture) for picture in pictures]

    def close() -> None:
        while open_nets:
            open_nets.pop().clear()

    return Peer(
        name="ncnn",
        provider="ncnn, CPU, fp32",
        version=importlib.metadata.version("ncnn"),
        run=run,
        difference=task.difference(np.stack([np.array(mat) for mat in run()])),
        close=close,
    )


def _run(net: Any, source: str, result: str, picture: Any) -> Any:
    with net.create_extractor() as extractor:
        extractor.input(source, picture)
        status, made = extractor.extract(result)
    if status != 0:
        raise InferenceError(f"ncnn ended with status {status}; memory may be short. Try a smaller --shape")
    return made


def _program() -> Path:
    # Its package imports torch, and only the program beside it is wanted.
    found = importlib.util.find_spec("pnnx")
    if found is None or found.origin is None:
        raise MissingDependencyError("pnnx is not installed. Run: pip install 'esrgan-deploy[peers]'")
    for name in ("pnnx", "pnnx.exe"):
        if (program := Path(found.origin).with_name(name)).is_file():
            return program
    raise MissingDependencyError(
        f"{Path(found.origin).parent} holds no program pnnx. "
        "Run: pip install --force-reinstall 'esrgan-deploy[peers]'"
    )


def _converted(task: PeerTask, program: Path) -> tuple[Path, Path]:
    # It writes half a dozen files beside what it reads.
    folder = task.folder / "ncnn"
    folder.mkdir(exist_ok=True)
    graph = folder / "net.onnx"
    shutil.copyfile(task.graph, graph)
    shape = ",".join(map(str, (1, *task.batch.shape[1:])))
    command = [str(program), graph.name, f"inputshape=[{shape}]f32", "fp16=0"]
    done = subprocess.run(
        command,
        check=False,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST,
    )
    parameters, weights = folder / "net.ncnn.param", folder / "net.ncnn.bin"
    if done.returncode != 0 or not parameters.is_file() or not weights.is_file():
        said = one_line(done.stdout)[-200:]
        raise InferenceError(
            f"pnnx {importlib.metadata.version('pnnx')} cannot convert {task.graph.name} for ncnn (status "
            f"{done.returncode}: {said}). Leave ncnn out of --peers"
        )
    return parameters, weights
