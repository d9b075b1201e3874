"""Other runtimes on the same net and the same input, for a comparison in the same run."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import ExportError, InferenceError, MissingDependencyError
from esrgan_deploy._files import CHECKPOINTS
from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks.peers._ncnn import open_ncnn
from esrgan_deploy.benchmarks.peers._protocol import Peer, PeerTask
from esrgan_deploy.benchmarks.peers._runtimes import open_onnxruntime, open_openvino
from esrgan_deploy.benchmarks.peers._torch import open_torch, open_torch_compiled

__all__ = ["Peer", "open_peers"]

OPENERS: dict[str, Callable[[PeerTask], Peer]] = {
    "torch": open_torch,
    "torch-compile": open_torch_compiled,
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "ncnn": open_ncnn,
}

# What stands before the suffix of the graphs and plans of an export.
GRAPH_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int8-cpu")


def open_peers(
    names: Sequence[str],
    model: Path,
    shape: tuple[int, int, int],
    *,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> list[Peer]:
    """Open other runtimes on the fp32 net of a model, each ready to run one batch of noise.

    Each has run once, and says how far its output is from ONNX Runtime's. On an NVIDIA GPU ``torch`` computes in
    fp16 and its copies to and from the device are within `Peer.run`; elsewhere all compute in fp32.

    Args:
        names: Of `_options.PEERS`, in the order wanted.
        model: A checkpoint, or a graph or plan of esrgan-export with ``model.onnx`` beside it.
        shape: ``(N, H, W)`` of the batch, in LR pixels.
        threads: Threads on the processor; None lets each choose. PyTorch's are the whole process'.
        say: Receives one line for each peer that is left out because it is not installed.

    Returns:
        Those that are installed, in the order of `names`; close each.

    Raises:
        InferenceError: A peer cannot run this net.
        MissingDependencyError: None of them is installed.
    """
    peers: list[Peer] = []
    missing: list[MissingDependencyError] = []
    with tempfile.TemporaryDirectory(prefix="esrgan-peers-") as folder:
        try:
            task = _task(Path(model), shape, threads, Path(folder))
            for name in dict.fromkeys(names):
                try:
                    peers.append(_open(name, task))
                except MissingDependencyError as error:
                    missing.append(error)
                    say(f"the peer {name} is left out: {one_line(error)}")
        except BaseException:
            for peer in peers:
                peer.close()
            raise
    if missing and not peers:
        raise missing[0]
    return peers


def _open(name: str, task: PeerTask) -> Peer:
    try:
        return OPENERS[name](task)
    except (InferenceError, MissingDependencyError):
        raise
    except Exception as error:
        # Five libraries raise whatever they like, with pages of text.
        raise InferenceError(
            f"the peer {name} cannot run {task.model.name} on {'x'.join(map(str, task.batch.shape))} "
            f"({type(error).__name__}: {one_line(error)[:200]}). Leave it out of --peers"
        ) from error


def _task(model: Path, shape: tuple[int, int, int], threads: int | None, folder: Path) -> PeerTask:
    ort = require("onnxruntime", extra="cpu")
    graph = _graph_of(model, folder)
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0]
        if source.type != "tensor(float)" or len(source.shape) != 4 or not isinstance(source.shape[1], int):
            raise InferenceError(
                f"{graph} takes {source.type} {source.shape}, and peers run the float form in fp32. "
                "Give the checkpoint, or a file with the model.onnx of esrgan-export beside it"
            )
        channels, (number, height, width) = source.shape[1], shape
        batch = np.random.default_rng(0).random((number, channels, height, width), np.float32)
        expected: Any = session.run(None, {source.name: batch})[0]
    except InferenceError:
        raise
    except Exception as error:
        raise InferenceError(
            f"ONNX Runtime cannot run {graph} on {'x'.join(map(str, shape))} ({one_line(error)[:200]}), "
            "so there is nothing to hold the peers against. Try another --shape"
        ) from error
    return PeerTask(model=model, graph=graph, batch=batch, expected=expected, threads=threads, folder=folder)


def _graph_of(model: Path, folder: Path) -> Path:
    if not model.is_file():
        raise InferenceError(f"there is no file {model}; give a checkpoint, or an artefact of esrgan-export")
    if model.suffix.lower() in CHECKPOINTS:
        return _traced(model, folder)
    # model.fp16.onnx and model.fp16.plan come from the model.onnx beside them; of "4x v1.5.onnx" nothing goes.
    stem = model.stem
    if stem.rpartition(".")[2] in GRAPH_PRECISIONS:
        stem = stem.rpartition(".")[0]
    beside = model.with_name(f"{stem}.onnx")
    if beside.is_file():
        return beside
    if model.suffix.lower() == ".onnx":
        return model
    raise InferenceError(
        f"peers run the fp32 graph of {model.name}, and {beside} is not there. Keep the artefacts of "
        "esrgan-export together, or give the checkpoint"
    )


def _traced(model: Path, folder: Path) -> Path:
    require("torch", extra="export")
    require("onnx_ir", extra="export")
    from esrgan_deploy.export.checkpoints import load_checkpoint
    from esrgan_deploy.export.graphs import fold_scales, nest_concats, save, trace

    loaded = load_checkpoint(model)
    graph = trace(loaded.module(), loaded.spec)
    # As esrgan-export writes model.onnx.
    nest_concats(graph)
    fold_scales(graph)
    path = folder / "model.onnx"
    try:
        save(graph, path)
    except ExportError as error:
        raise InferenceError(f"{model} cannot be made a graph for the peers: {error}") from error
    return path
