"""Architectures beyond this package's own, through spandrel where it is installed.

Spandrel (github.com/chaiNNer-org/spandrel) detects some forty image-to-image architectures from their keys.
It is an extra that the tests do not install: what they run here is the refusal without it and the mapping of
a stand-in with the documented attributes; a real spandrel has not been run against this module.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._optional import require
from esrgan_deploy._spec import ModelSpec

__all__ = ["module_from_spandrel"]


def module_from_spandrel(
    tensors: Mapping[str, Tensor], *, source: str, sha256: str
) -> tuple[nn.Module, ModelSpec]:
    """Build the module that spandrel knows for these tensors, and describe it.

    Args:
        tensors: The generator's tensors, as `read_tensors` returns them.
        source: The file's name, for messages.
        sha256: Digest of the file, for the specification.

    Returns:
        The module, float32 on the CPU, and its specification. ``features``, ``blocks`` and ``growth`` are 0;
        ``size_multiple`` is spandrel's ``size_requirements.multiple_of``.

    Raises:
        MissingDependencyError: Spandrel is not installed.
        CheckpointError: Spandrel does not know the architecture, or it is not one picture in and one out.
    """
    spandrel = require("spandrel", extra="spandrel")
    try:
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(tensors))
    except spandrel.UnsupportedModelError as error:
        raise CheckpointError(f"Spandrel does not know {source} either; give another checkpoint") from error
    except Exception as error:
        # It reads shapes by key without asking: a near miss fails as KeyError, RuntimeError or whatever.
        raise CheckpointError(f"Spandrel fails to load {source} ({one_line(error)[:200]})") from error
    if not isinstance(found, spandrel.ImageModelDescriptor):
        raise CheckpointError(
            f"Spandrel reads {source} as {type(found).__name__}; only nets of one picture in and one out "
            "are exported"
        )
    needs = found.size_requirements
    if needs.square:
        raise CheckpointError(
            f"{source} takes square pictures only, which cannot be tiled; it is not exported"
        )
    multiple = max(1, int(needs.multiple_of))
    spec = ModelSpec(
        architecture=str(found.architecture.id),
        scale=int(found.scale),
        in_channels=int(found.input_channels),
        out_channels=int(found.output_channels),
        features=0,
        blocks=0,
        growth=0,
        source_sha256=sha256,
        size_multiple=multiple,
        supports_half=bool(found.supports_half),
        supports_bfloat16=bool(found.supports_bfloat16),
    )
    module: nn.Module = found.model.float().eval().requires_grad_(False)
    side = -(-max(64, int(needs.minimum)) // multiple) * multiple
    _try_out(module, spec, side, source)
    return module, spec


def _try_out(module: nn.Module, spec: ModelSpec, side: int, source: str) -> None:
    # Some descriptors call their module in a way of their own; what is exported is the module alone.
    with torch.no_grad():
        try:
            made = module(torch.zeros(1, spec.in_channels, side, side))
        except Exception as error:
            raise CheckpointError(
                f"{source} ({spec.architecture}) does not run on a picture of {side}x{side} "
                f"({one_line(error)[:200]})"
            ) from error
    wanted = (1, spec.out_channels, side * spec.scale, side * spec.scale)
    if not isinstance(made, Tensor) or tuple(made.shape) != wanted:
        got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise CheckpointError(
            f"{source} ({spec.architecture}) makes {got} of a picture of {side}x{side} where {wanted} was "
            "announced; it needs more around its module than a graph can carry"
        )
