"""Which net a dictionary of tensors is, read from the names and shapes in it and never from their order."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import PurePath

import torch
from torch import Tensor, nn

from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.checkpoints._keys_compact import compact_layout
from esrgan_deploy.export.checkpoints._keys_rrdbnet import rrdb_layout
from esrgan_deploy.export.checkpoints._keys_span import span_layout
from esrgan_deploy.export.checkpoints._layout import Layout, UnknownFamilyError
from esrgan_deploy.export.checkpoints._wrappers import keys_seen
from esrgan_deploy.export.nets import empty_net

__all__ = ["Checkpoint", "identify", "is_discriminator"]

FAMILIES = (
    "RRDBNet as BasicSR/Real-ESRGAN, ESRGAN (BSRGAN, RealSR), old ESRGAN and KAIR name its parts, "
    "and SRVGGNetCompact, both in ncnn's form as well; SPAN"
)
"""The families that are read without spandrel, for a message."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The weights of a generator and what they make.

    Attributes:
        spec: The net. Of an interpolation, ``source_sha256`` is of both files' and of the strength.
        tensors: float32 and contiguous, by the parameter names of `RRDBNet`, `SRVGGNetCompact` or `SPAN` and in
            their order; where spandrel made the module, by that module's names. None shares memory with another or
            with what was read.
        dialect: Whose names the file used: ``"basicsr"``, ``"esrgan"``, ``"esrgan-old"``, ``"kair"``,
            ``"compact"``, ``"span"`` or ``"spandrel"``; ``"ncnn"`` where it has none and the graph told.
        source: The file's name without its folder; of an interpolation both, with their weights; of ncnn's two files
            the graph's.
    """

    spec: ModelSpec
    tensors: dict[str, Tensor] = dataclasses.field(repr=False)
    dialect: str
    source: str
    _foreign: nn.Module | None = dataclasses.field(default=None, repr=False)

    def module(self) -> nn.Module:
        """Return a new module with these weights, float32 on the CPU, in eval mode, its parameters frozen."""
        if self._foreign is not None:
            net = copy.deepcopy(self._foreign)
        else:
            # By way of the device meta: a random initialisation of 23 blocks would take longer than all else.
            net = empty_net(self.spec).to_empty(device="cpu")
        net.load_state_dict(self.tensors)
        return net.eval().requires_grad_(False)


def identify(
    tensors: Mapping[str, Tensor], *, source: str, sha256: str, scale: int | None = None
) -> Checkpoint:
    """Find the family, the dialect and the dimensions of a net, and bring its tensors under their own names.

    Args:
        tensors: The generator's tensors, as `read_tensors` returns them.
        source: The file.
        sha256: Digest of the file, for the specification.
        scale: The scale, for the one case that shapes leave open: an old-ESRGAN net for x3 has the same names
            and shapes as one for x2. A scale that contradicts the shapes is refused.

    Raises:
        UnknownFamilyError: It is of no family that is known.
        CheckpointError: It is of a known family, and incomplete, of mixed dialects, of impossible shapes or
            not finite.
    """
    layout = rrdb_layout(tensors, source=source, sha256=sha256, scale=scale)
    layout = layout or compact_layout(tensors, source=source, sha256=sha256)
    if layout is None and (span := span_layout(tensors, source=source, sha256=sha256)) is not None:
        layout, tensors = span
    if layout is None:
        raise UnknownFamilyError(
            f"{source} is of no family that is known (seen: {keys_seen(tensors)}; known: {FAMILIES})"
        )
    if scale is not None and scale != layout.spec.scale:
        raise CheckpointError(
            f"{source} enlarges by {layout.spec.scale}, as its shapes say, and not by {scale}; "
            "leave the scale out"
        )
    return Checkpoint(
        spec=layout.spec,
        tensors=_collect(tensors, layout, source),
        dialect=layout.dialect,
        source=PurePath(source).name,
    )


def is_discriminator(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors that no generator has are those of a discriminator, whatever its parts are called.

    It ends in one logit for each picture (a linear layer of one output) or for each place (a convolution of one
    channel), and it halves its input by 4x4 convolutions that widen: VGG's of ESRGAN, Real-ESRGAN's U-Net with
    spectral norm, PatchGAN.
    """
    shapes = [tuple(value.shape) for value in tensors.values()]
    by_picture = any(len(shape) == 2 and shape[0] == 1 and shape[1] > 4 for shape in shapes)
    by_place = any(len(shape) == 4 and shape[0] == 1 and shape[1] > 4 for shape in shapes)
    halving = [shape for shape in shapes if len(shape) == 4 and shape[2:] == (4, 4) and shape[0] >= shape[1]]
    # Discriminators that halve by pooling have the linear layer.
    return by_picture or (by_place and len(halving) >= 2)


def _collect(tensors: Mapping[str, Tensor], layout: Layout, source: str) -> dict[str, Tensor]:
    missing = [key for key in layout.keys.values() if key not in tensors]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of the {len(layout.keys)} tensors of {layout.title} "
            f"({keys_seen(missing)}); the file is incomplete, download or save it again"
        )
    used = set(layout.keys.values())
    unknown = [key for key in tensors if key not in used]
    if unknown:
        raise UnknownFamilyError(
            f"{source} reads like {layout.title} and has {len(unknown)} tensors that such a net does not "
            f"({keys_seen(unknown)}); known: {FAMILIES}"
        )
    expected = {name: tuple(value.shape) for name, value in empty_net(layout.spec).state_dict().items()}
    return {
        name: _checked(tensors[layout.keys[name]], shape, f"{source}: {layout.keys[name]!r}", layout.title)
        for name, shape in expected.items()
    }


def _checked(value: Tensor, shape: tuple[int, ...], where: str, title: str) -> Tensor:
    if tuple(value.shape) != shape:
        raise CheckpointError(
            f"{where} has the shape {tuple(value.shape)} where {title} needs {shape}; "
            "the file is damaged or of another architecture"
        )
    if not value.dtype.is_floating_point:
        raise CheckpointError(
            f"{where} is {str(value.dtype).removeprefix('torch.')}; weights are floating-point"
        )
    # A copy even of float32: two names may share one storage, and a caller may write into what it gets.
    result = value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    broken = int((~torch.isfinite(result)).sum())
    if broken:
        raise CheckpointError(
            f"{where} holds {broken} values of {result.numel()} that are NaN or infinite; "
            "the training diverged or the file is damaged, take an earlier checkpoint"
        )
    return result
