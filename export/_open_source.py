"""Whatever was handed in, as one thing to export."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from esrgan_deploy._errors import CheckpointError, ExportError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export._open_onnx import load_onnx
from esrgan_deploy.export._options import ExportOptions
from esrgan_deploy.export._report import each_tenth
from esrgan_deploy.export.checkpoints import load_checkpoint, resolve_checkpoint
from esrgan_deploy.export.graphs import resize_ratio, trace
from esrgan_deploy.export.proof import Reference, reference_of_module, resized
from esrgan_deploy.runtime import SessionOptions

__all__ = ["Source", "describe_spec", "open_source", "shipped_checkpoint"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A traced model that has not been rewritten yet.

    Attributes:
        name: Name of the file, without a folder.
        spec: What it is.
        graph: The float form in fp32, at the net's own scale.
        reference: What every artefact is held against, at the wanted scale.
        against: What the reference is, in words.
        ratio: Wanted scale over own scale.
        weights: The checkpoint's file, where it is one.
        module: The generator in PyTorch, in eval mode, where there is a checkpoint; nothing may change it.
    """

    name: str
    spec: ModelSpec
    graph: ir.Model
    reference: Reference
    against: str
    ratio: Fraction
    weights: Path | None = None
    module: nn.Module | None = None


def open_source(model: str | Path | None, options: ExportOptions, *, say: Callable[[str], None]) -> Source:
    """Read a checkpoint, a graph, or what an official name stands for, and trace it.

    Args:
        model: A path, an official name such as ``"RealESRGAN_x4plus"``, or None for the model that ships.
        options: What to do with it.
        say: Receives a line of progress now and then.

    Raises:
        CheckpointError: There is no such file or name, or it is not of a family that is known.
        ExportError: It cannot be traced.
    """
    path = _resolve(model, options, say)
    said = SessionOptions(range=options.range, layout=options.layout, output_name=options.output_name)
    if path.suffix.lower() == ".onnx":
        if options.denoise_strength is not None:
            raise CheckpointError(f"{path.name} is a graph: --denoise-strength interpolates two checkpoints")
        graph, spec, reference = load_onnx(path, said, say=say)
        _refuse_channels(spec, path.name)
        opset = graph.graph.opset_imports[""]
        if options.opset not in (None, opset):
            raise ExportError(
                f"{path.name} is of opset {opset} and keeps it; leave --opset {options.opset} away"
            )
        ratio = _ratio(spec, options)
        if ratio != 1:
            reference = _resized(reference, ratio)
        return Source(
            name=path.name,
            spec=spec,
            graph=graph,
            reference=reference,
            against="the graph as it came, in ONNX Runtime",
            ratio=ratio,
        )
    if said.describes:
        raise CheckpointError(
            f"{path.name} is a checkpoint: --range, --layout and --output-name are for .onnx graphs"
        )
    other = options.denoise_with
    checkpoint = load_checkpoint(
        path,
        denoise_strength=options.denoise_strength,
        # Without a strength it is refused, and nothing is downloaded for that.
        denoise_with=other
        if other is None or options.denoise_strength is None
        else _resolve(other, options, say),
        scale=options.scale,
    )
    spec, module = checkpoint.spec, checkpoint.module()
    say(f"{path.name}: {describe_spec(spec)}, names of {checkpoint.dialect}")
    _refuse_channels(spec, path.name)
    ratio = _ratio(spec, options)
    say("tracing to ONNX")
    return Source(
        name=checkpoint.source,
        spec=spec,
        graph=trace(module, spec, opset=options.opset or 20),
        reference=reference_of_module(module, ratio),
        against="PyTorch in fp32",
        ratio=ratio,
        weights=path if options.denoise_strength is None else None,
        module=module,
    )


def _refuse_channels(spec: ModelSpec, name: str) -> None:
    # What is written must be of use here: a picture is enlarged as RGB or as gray, and its alpha as gray.
    if spec.in_channels != spec.out_channels or spec.in_channels not in (1, 3):
        raise CheckpointError(
            f"{name} makes {spec.out_channels} channels of {spec.in_channels}; what can be exported and run makes "
            "3 of 3 (RGB) or 1 of 1 (gray). Alpha needs no net of its own: it is enlarged as gray"
        )


def shipped_checkpoint() -> Path:
    """Return the weights of the model that ships with the package.

    Raises:
        CheckpointError: This installation lacks them.
    """
    path = Path(str(resources.files("esrgan_deploy.models"))) / "default.safetensors"
    if not path.is_file():
        raise CheckpointError(
            "the shipped model is not in this installation. Run: pip install --force-reinstall esrgan-deploy"
        )
    return path


def describe_spec(spec: ModelSpec) -> str:
    """Return a specification in words."""
    words = [f"{spec.architecture} x{spec.scale}"]
    if spec.features:
        words.append(f"{spec.features} features")
        words.append(f"{spec.blocks} blocks")
    if spec.growth:
        words.append(f"growth {spec.growth}")
    if spec.unshuffle > 1:
        words.append(f"pixel-unshuffle {spec.unshuffle}")
    if spec.flops_per_pixel:
        words.append(f"{spec.flops_per_pixel / 1e6:.2f} MFLOP per pixel")
    return ", ".join(words)


def _resolve(model: str | Path | None, options: ExportOptions, say: Callable[[str], None]) -> Path:
    if model is None:
        return shipped_checkpoint()
    show = each_tenth(say)

    def progress(done: int, total: int) -> None:
        show(done, total, f"downloading: {done / 2**20:.1f} of {total / 2**20:.1f} MiB")

    return resolve_checkpoint(str(model), offline=options.offline, progress=progress)


def _ratio(spec: ModelSpec, options: ExportOptions) -> Fraction:
    return resize_ratio(spec.scale, options.outscale) if options.outscale else Fraction(1)


def _resized(reference: Reference, ratio: Fraction) -> Reference:
    def resized_reference(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        out: npt.NDArray[np.float32] = resized(torch.from_numpy(reference(batch)), ratio).contiguous().numpy()
        return out

    return resized_reference
