"""Other quantisers on the same fp32 graph and the same calibration pictures, with what they do by default."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import note, one_line
from esrgan_deploy._errors import MissingDependencyError
from esrgan_deploy._optional import require
from esrgan_deploy._parity import planar
from studies.quantisation.graphs import quantised_share

__all__ = ["MODELOPT_PYTHON", "PEERS", "PeerGraph", "peer_graphs"]

Crops = Sequence[npt.NDArray[np.uint8]]

PEERS = ("onnxruntime", "modelopt")
"""The names that `peer_graphs` takes."""

MODELOPT_PYTHON = "ESRGAN_MODELOPT_PYTHON"
"""Variable that names the interpreter which has nvidia-modelopt."""

_ONNXRUNTIME = {"MinMax": "its default", "Entropy": "", "Percentile": ""}
# Format, calibration method and what the name says of it. Both formats take entropy where nothing is asked for.
_MODELOPT = (("int8", "entropy", "its default"), ("int8", "max", ""), ("fp8", "entropy", "its default"))

# Runs in the other environment: no line of this package is needed there.
_SCRIPT = """
import json, sys
import numpy as np
import modelopt
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization import CalibrationDataReader

class Reader(CalibrationDataReader):
    def __init__(self, path):
        with np.load(path) as crops:
            self.crops = [crops[name] for name in crops.files]
        self.rewind()
    def get_next(self):
        return next(self.left, None)
    def get_first(self):
        return {task["input"]: self.crops[0]}
    def rewind(self):
        self.left = iter([{task["input"]: crop} for crop in self.crops])

task = json.loads(sys.argv[1])
quantize(
    task["model"], quantize_mode=task["format"], calibration_method=task["method"],
    calibration_data_reader=Reader(task["crops"]), calibration_eps=["cpu"], output_path=task["output"],
    log_level="ERROR",
)
print("modelopt", modelopt.__version__)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerGraph:
    """What a peer made.

    Attributes:
        name: The peer, its version, the format and how it was calibrated.
        path: The graph; None where there is none.
        why: Why there is none, in one line.
    """

    name: str
    path: Path | None = None
    why: str = ""


def peer_graphs(
    names: Sequence[str],
    model: Path,
    crops: Crops,
    folder: Path,
    *,
    modelopt_python: Path | None = None,
    threads: int | None = None,
) -> list[PeerGraph]:
    """Let other quantisers work on a graph.

    Args:
        names: Of `PEERS`.
        model: The fp32 graph, float form.
        crops: What to calibrate on, ``(1, H, W, 3)`` uint8 each.
        folder: Where they write.
        modelopt_python: The interpreter that has nvidia-modelopt; None takes the variable `MODELOPT_PYTHON`.
        threads: Of the other interpreter's libraries; None lets them choose.

    Returns:
        One for each way that each peer has; one that is not installed, or fails, says why.
    """
    batches = [planar(crop) for crop in crops]
    found: list[PeerGraph] = []
    if "onnxruntime" in names:
        found += [_onnxruntime(model, batches, folder, method, said) for method, said in _ONNXRUNTIME.items()]
    if "modelopt" in names:
        python = modelopt_python or os.environ.get(MODELOPT_PYTHON)
        if python is None:
            why = f"no interpreter has it: name one by --modelopt-python or {MODELOPT_PYTHON}"
            found.append(PeerGraph(name="nvidia-modelopt", why=why))
        else:
            found += _modelopt(Path(python), model, batches, folder, threads)
    return [_checked(peer) for peer in found]


def _checked(peer: PeerGraph) -> PeerGraph:
    # nvidia-modelopt was seen to report success of a graph in which it had quantised nothing.
    if peer.path is None:
        return peer
    if not peer.path.is_file():
        return PeerGraph(name=peer.name, why="it reports success and has written nothing")
    if not quantised_share(require("onnx", extra="export").load(peer.path)).quantised:
        return PeerGraph(name=peer.name, why="it reports success and has quantised no convolution")
    return peer


def _onnxruntime(
    model: Path,
    batches: list[npt.NDArray[np.float32]],
    folder: Path,
    method: str,
    said: str,
) -> PeerGraph:
    try:
        ort = require("onnxruntime", extra="cpu")
        quantisation = require("onnxruntime.quantization", extra="cpu")
    except MissingDependencyError as error:
        return PeerGraph(name="onnxruntime.quantization", why=one_line(error))
    name = _called(f"onnxruntime.quantization {ort.__version__}", "int8", method, said)
    note(f"calibrating {name}")
    path = folder / f"onnxruntime.{method.lower()}.onnx"
    source = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(quantisation.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._left, None)
            return None if batch is None else {source: batch}

    try:
        with _quiet():
            quantisation.quantize_static(
                str(model), str(path), Reader(), calibrate_method=quantisation.CalibrationMethod[method]
            )
    except Exception as error:
        # It raises whatever its parts do.
        return PeerGraph(name=name, why=f"{type(error).__name__}: {one_line(error)[:200]}")
    return PeerGraph(name=name, path=path)


def _modelopt(
    python: Path,
    model: Path,
    batches: list[npt.NDArray[np.float32]],
    folder: Path,
    threads: int | None,
) -> list[PeerGraph]:
    onnx = require("onnx", extra="export")
    source = onnx.load(model, load_external_data=False).graph.input[0].name
    crops = folder / "crops.npz"
    np.savez(crops, **{f"{number:04}": batch for number, batch in enumerate(batches)})  # type: ignore[arg-type]
    found = []
    for kind, method, said in _MODELOPT:
        note(f"calibrating {_called('nvidia-modelopt', kind, method, said)}")
        path = folder / f"modelopt.{kind}.{method}.onnx"
        task = {"format": kind, "method": method, "crops": str(crops), "input": source, "output": str(path)}
        version, why = _run(python, model, task, threads)
        name = _called(f"nvidia-modelopt{version}", kind, method, said)
        found.append(PeerGraph(name=name, why=why) if why else PeerGraph(name=name, path=path))
    return found


def _run(python: Path, model: Path, task: dict[str, str], threads: int | None) -> tuple[str, str]:
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    # It writes beside the model as well.
    with tempfile.TemporaryDirectory(prefix="esrgan-modelopt-") as where:
        copied = shutil.copy(model, Path(where) / "model.onnx")
        try:
            done = subprocess.run(
                [str(python), "-c", _SCRIPT, json.dumps({"model": str(copied), **task})],
                capture_output=True,
                text=True,
                cwd=where,
                env=environment,
            )
        except OSError as error:
            return "", f"{python} does not run ({error.strerror})"
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == 0 and last.startswith("modelopt "):
        return last.removeprefix("modelopt"), ""
    lines = done.stderr.strip().splitlines() or ["it says nothing"]
    return "", f"exit status {done.returncode}: {one_line(lines[-1])[-200:]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # It prints its progress, and advises steps that change nothing in a graph without shapes to fold.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _called(peer: str, kind: str, method: str, said: str) -> str:
    return f"{peer} {kind}, {method}" + (f" ({said})" if said else "")
