"""Which artefact a name stands for, and who answers to the protocol for it."""

import dataclasses
import importlib.metadata
import importlib.resources
from collections.abc import Callable, Sequence
from pathlib import Path

from esrgan_deploy._errors import EsrganDeployError, InferenceError
from esrgan_deploy._files import CHECKPOINTS, PLANS
from esrgan_deploy._flavour import flavour_is_installed
from esrgan_deploy._manifest import load_manifest
from esrgan_deploy.runtime.device import cuda_device_count
from esrgan_deploy.runtime.sessions._auto import is_auto
from esrgan_deploy.runtime.sessions._protocol import Session, SessionOptions
from esrgan_deploy.runtime.sessions.openvino import is_openvino

__all__ = ["chooses_arithmetic", "default_model", "model_path", "open_session", "widened"]

REGISTRY = "esrgan_deploy.sessions"


def chooses_arithmetic(providers: Sequence[str] | None) -> bool:
    """Whether what runs a graph can compute it in another precision than its own."""
    return is_auto(providers) or is_openvino(providers)


def widened(options: SessionOptions) -> SessionOptions:
    """Return how to open a graph so that it computes with all the range that it has."""
    providers = None if is_auto(options.providers) else options.providers
    return dataclasses.replace(
        options, providers=providers, precision="fp32" if is_openvino(providers) else options.precision
    )


def model_path(model: str | Path | None) -> Path:
    """Return the artefact that a name stands for: itself, the best in a folder, or the model that ships.

    Raises:
        InferenceError: The folder holds no artefact, or those of several models.
    """
    if model is None:
        return default_model()
    path = Path(model)
    return _best_in(path) if path.is_dir() else path


def default_model() -> Path:
    """Return the path of the ONNX graph that ships with the package.

    Raises:
        InferenceError: This installation carries none.
    """
    model = Path(str(importlib.resources.files("esrgan_deploy.models") / "default.onnx"))
    if not model.is_file():
        raise InferenceError(
            f"no model was named and {model} does not exist. Run: esrgan-export model.pth -o out, "
            "then give out/model.onnx as the model"
        )
    return model


def open_session(path: str | Path, options: SessionOptions | None = None) -> Session:
    """Open an artefact with what can run it.

    Args:
        path: An ``.onnx`` graph (ONNX Runtime or OpenVINO runs it), a TensorRT ``.plan``, or a checkpoint, which
            PyTorch runs where the extra ``export`` is installed.
        options: How to open it.

    Raises:
        CheckpointError: A checkpoint cannot be read, or is of no known family.
        EngineMismatchError: A plan does not fit this machine, or nothing vouches for it.
        InferenceError: There is no such file, it is of no known kind, or it cannot be run here.
        MissingDependencyError: The package that runs it is not installed.
    """
    path, options = Path(path), options or SessionOptions()
    suffix = path.suffix.lower()
    if not path.exists():
        raise InferenceError(
            f"there is no file {path}; give an .onnx or .plan that esrgan-export wrote, or a checkpoint"
            f"{_how_to_make(path)}"
        )
    if path.is_dir():
        raise InferenceError(f"{path} is a folder; give the artefact in it, such as {path / 'model.onnx'}")
    # Before it is opened: opening a pipe waits for someone to write into it.
    if not path.is_file():
        raise InferenceError(f"{path} is a pipe or a device and no regular file; save it to a file first")
    if suffix in PLANS:
        return _open_plan(path, options)
    if suffix == ".onnx":
        return _open_graph(path, options)
    opener = _registered(suffix)
    if opener is not None:
        return opener(path, options)
    if suffix in CHECKPOINTS:
        raise InferenceError(
            f"{path} is a checkpoint, not a graph. Run: esrgan-export {path} -o out, then use out/model.onnx"
        )
    raise InferenceError(
        f"{path} ends in {suffix or 'no suffix'}; a model ends in .onnx or .plan, a checkpoint in "
        f"{', '.join(CHECKPOINTS)}"
    )


def _registered(suffix: str) -> Callable[[Path, SessionOptions], Session] | None:
    # The room that reads checkpoints lies above this one: it registers what opens them, so that nothing here
    # imports it, and so can any other package.
    for point in importlib.metadata.entry_points(group=REGISTRY):
        if point.name == suffix.removeprefix("."):
            opener: Callable[[Path, SessionOptions], Session] = point.load()
            return opener
    return None


def _open_graph(path: Path, options: SessionOptions) -> Session:
    if is_auto(options.providers):
        from esrgan_deploy.runtime.sessions._auto import open_fastest

        return open_fastest(path, options)
    if is_openvino(options.providers):
        from esrgan_deploy.runtime.sessions.openvino import OpenVinoSession

        return OpenVinoSession(path, options)
    from esrgan_deploy.runtime.sessions.onnx import OnnxSession

    return OnnxSession(path, options)


def _open_plan(path: Path, options: SessionOptions) -> Session:
    if cuda_device_count() == 0:
        raise InferenceError(
            f"{path} is a TensorRT plan and no NVIDIA GPU is to be found here; "
            f"{_onnx_beside(path)} on this machine"
        )
    from esrgan_deploy.runtime.sessions.plan import PlanSession

    return PlanSession(path, options)


def _how_to_make(path: Path) -> str:
    # What may be an official name is not opened here: these are checkpoints, which an export makes fast.
    if path.name != str(path) or path.suffix.lower() not in ("", ".pth"):
        return ""
    name = path.stem if path.suffix else path.name
    return (
        f". If it is one of the official names (esrgan-export --list): run: esrgan-export {name} -o {name}, "
        f"then give {name}/model.onnx"
    )


def _onnx_beside(plan: Path) -> str:
    # model.fp16.plan was built from model.fp16.onnx, and model.onnx is the same net in float32.
    parts = plan.name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        candidate = plan.with_name(".".join(parts[:length]) + ".onnx")
        if candidate.is_file():
            return f"use {candidate}"
    return "use the .onnx that the plan was built from"


def _best_in(folder: Path) -> Path:
    manifests = []
    for candidate in sorted(folder.glob("*.json")):
        try:
            manifests.append(load_manifest(candidate))
        except EsrganDeployError:
            continue
    if len(manifests) != 1:
        found = "the artefacts of several models" if manifests else "no manifest that can be read"
        raise InferenceError(
            f"{folder} holds {found}; give the artefact itself, such as {folder / 'model.onnx'}"
        )
    here = [artefact for artefact in manifests[0].artefacts if (folder / artefact.file).is_file()]
    plans = [one.file for one in here if Path(one.file).suffix in PLANS and flavour_is_installed(one.flavour)]
    graphs = [one.file for one in here if one.kind == "onnx"]
    # On a GPU what was made for it, in the order of the export; elsewhere the fp32 graph, which comes first.
    for name in [*plans, *graphs] if cuda_device_count() else graphs:
        return folder / name
    raise InferenceError(
        f"{folder} holds neither a plan nor a graph of its manifest. Run: esrgan-export again"
    )
