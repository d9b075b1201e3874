"""A checkpoint, from the file to a torch module."""

import dataclasses
import hashlib
from pathlib import Path

from torch import Tensor

from esrgan_deploy._errors import CheckpointError, MissingDependencyError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.checkpoints._identify import Checkpoint, identify, is_discriminator
from esrgan_deploy.export.checkpoints._layout import UnknownFamilyError
from esrgan_deploy.export.checkpoints._read_file import read_with_files
from esrgan_deploy.export.checkpoints._spandrel import module_from_spandrel

__all__ = ["load_checkpoint"]


def load_checkpoint(
    path: Path,
    *,
    denoise_strength: float | None = None,
    denoise_with: Path | None = None,
    scale: int | None = None,
) -> Checkpoint:
    """Read a checkpoint, find out what net it is and bring its weights under that net's own names.

    Two checkpoints of one architecture are interpolated as Real-ESRGAN does for ``realesr-general-x4v3`` and
    its weakly denoising twin (``dni`` in its ``realesrgan/utils.py``, after arXiv:1811.10515):
    ``strength · first + (1 - strength) · second``, in float32.

    Args:
        path: A ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file, or ncnn's ``.param`` or ``.bin`` with the other
            beside it.
        denoise_strength: Share of the first checkpoint, 0..1.
        denoise_with: The second checkpoint, such as ``realesr-general-wdn-x4v3.pth``; may be left out where
            the strength is 1.
        scale: See `identify`; 3 for an old-ESRGAN net that was trained for x3.

    Raises:
        CheckpointError: A file cannot be read, is of no known family, is damaged or incomplete, or the two
            do not fit each other.
    """
    if denoise_strength is None and denoise_with is not None:
        raise CheckpointError(
            f"a second checkpoint was given ({denoise_with}) and no strength; give one between 0 and 1, "
            "such as --denoise-strength 0.5"
        )
    if denoise_strength is not None and not 0.0 <= denoise_strength <= 1.0:
        raise CheckpointError(f"the denoise strength is {denoise_strength}; it is a number from 0 to 1")
    first = _load(path, scale)
    if denoise_strength is None or (denoise_strength == 1.0 and denoise_with is None):
        return first
    if denoise_with is None:
        raise CheckpointError(
            f"a denoise strength of {denoise_strength} needs a second checkpoint to interpolate with; "
            "give it, such as --denoise-with realesr-general-wdn-x4v3"
        )
    return _interpolated(first, _load(denoise_with, scale), denoise_strength)


def _load(path: Path, scale: int | None) -> Checkpoint:
    tensors, files = read_with_files(path)
    sha256 = sha256_of(path)
    if len(files) > 1:
        # Graphs of one architecture are one file, and weights without a graph may be of any.
        path, sha256 = files[0], hashlib.sha256(" ".join(map(sha256_of, files)).encode()).hexdigest()
    try:
        found = identify(tensors, source=str(path), sha256=sha256, scale=scale)
        return found if len(files) == 1 else dataclasses.replace(found, dialect="ncnn")
    except UnknownFamilyError as unknown:
        try:
            module, spec = module_from_spandrel(tensors, source=str(path), sha256=sha256)
        except (MissingDependencyError, CheckpointError) as refused:
            if is_discriminator(tensors):
                raise CheckpointError(
                    f"{path} is a discriminator: it judges pictures and makes none. Give the generator of the same "
                    "training, such as net_g_latest.pth"
                ) from unknown
            what = "Spandrel reads other image-to-image nets, and "
            hint = what if isinstance(refused, MissingDependencyError) else ""
            raise CheckpointError(f"{unknown}. {hint}{refused}") from unknown
        return Checkpoint(
            spec=spec, tensors=module.state_dict(), dialect="spandrel", source=path.name, _foreign=module
        )


def _interpolated(first: Checkpoint, second: Checkpoint, strength: float) -> Checkpoint:
    for field in dataclasses.fields(ModelSpec):
        mine, other = getattr(first.spec, field.name), getattr(second.spec, field.name)
        if mine != other and field.name != "source_sha256":
            raise CheckpointError(
                f"{first.source} and {second.source} cannot be interpolated: their {field.name} is {mine} "
                f"and {other}; two trainings of one net are needed"
            )
    differing = [
        name
        for name in first.tensors.keys() | second.tensors.keys()
        if name not in first.tensors
        or name not in second.tensors
        or first.tensors[name].shape != second.tensors[name].shape
    ]
    if differing:
        raise CheckpointError(
            f"{first.source} and {second.source} cannot be interpolated: {min(differing)!r} differs in "
            "shape or is in one of them only; two trainings of one net are needed"
        )
    # At the ends the one checkpoint itself: 1·a + 0·b would turn a zero's sign.
    digest = first.spec.source_sha256
    if strength == 1.0:
        tensors = first.tensors
    elif strength == 0.0:
        tensors, digest = second.tensors, second.spec.source_sha256
    else:
        both = f"{strength!r} {first.spec.source_sha256} {second.spec.source_sha256}"
        digest = hashlib.sha256(both.encode()).hexdigest()
        tensors = {
            name: _mixed(value, second.tensors[name], strength) for name, value in first.tensors.items()
        }
    return dataclasses.replace(
        first,
        spec=dataclasses.replace(first.spec, source_sha256=digest),
        tensors=tensors,
        source=f"{strength:g} {first.source} + {1 - strength:g} {second.source}",
    )


def _mixed(first: Tensor, second: Tensor, strength: float) -> Tensor:
    # Index buffers, which nets of spandrel may have, are no weights.
    return strength * first + (1 - strength) * second if first.is_floating_point() else first
