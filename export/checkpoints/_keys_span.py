"""SPAN's names, and its re-parameterised convolutions collapsed."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.checkpoints._layout import Layout, UnknownFamilyError
from esrgan_deploy.export.checkpoints._wrappers import keys_seen

__all__ = ["span_layout"]

BLOCKS = 6
MEAN = (0.4488, 0.4371, 0.4040)
"""Of DIV2K in RGB, the default of the training code, which no checkpoint holds."""
RANGE = 255.0
"""What the picture is multiplied with once the mean is off, by the same code."""

_TITLE = "a SPAN"
_PARTS = ("sk", "conv.0", "conv.1", "conv.2")


def span_layout(
    tensors: Mapping[str, Tensor], *, source: str, sha256: str
) -> tuple[Layout, dict[str, Tensor]] | None:
    """Read a SPAN (arXiv:2311.12770) and collapse its convolutions, or return None for another family's names.

    The official training code names its parts ``block_1.c1_r.sk``; neosr, traiNNer and spandrel do the same. A
    tensor ``no_norm`` says that the picture goes in as it is; else `MEAN` is taken off, and `RANGE` multiplied.

    Each 3×3 convolution was trained as a skip ``sk`` (1×1) beside ``conv.0`` (1×1, widening), ``conv.1`` (3×3) and
    ``conv.2`` (1×1) in a row. Nothing nonlinear stands between them, and in training the picture is padded in front
    of ``conv.0``, so that one convolution computes the same, its borders included. The file holds such a one as well,
    as ``eval_conv``, as it was when the net was last evaluated: it may be older than its parts, and is not read.

    Returns:
        The layout, whose keys are the net's own names, and the tensors under them, float32, collapsed in float64.

    Raises:
        UnknownFamilyError: It reads like one and has tensors that it does not have.
        CheckpointError: It is one, and incomplete or of impossible shapes.
    """
    if not {"conv_1.sk.weight", "block_1.c1_r.sk.weight", "conv_cat.weight"} <= tensors.keys():
        return None
    names = {"conv_1": "conv_first", "conv_2": "conv_body"}
    for block in range(BLOCKS):
        names |= {f"block_{block + 1}.c{number}_r": f"body.{block}.conv{number}" for number in (1, 2, 3)}
    plain = {"conv_cat": "conv_cat", "upsampler.0": "conv_last"}
    _refuse_other_keys(tensors, [*names], [*plain], source)
    features, channels = _sides(tensors["conv_1.sk.weight"], f"{source}: 'conv_1.sk.weight'")
    made = tensors["upsampler.0.weight"].shape[0] if tensors["upsampler.0.weight"].ndim else 0
    scale = math.isqrt(made // channels)
    if scale == 0 or scale * scale * channels != made:
        raise CheckpointError(
            f"{source}: 'upsampler.0.weight' makes {made} channels, which is no square times the {channels} channels "
            f"of the picture that goes in; {_TITLE} gives as many as it takes"
        )
    mean = () if "no_norm" in tensors else MEAN
    if mean and channels != len(mean):
        raise CheckpointError(
            f"{source} takes {channels} channels and has no 'no_norm': the mean that {_TITLE} takes off is known of "
            "RGB alone; save it again from the code that trained it, with norm=False"
        )
    collapsed = {
        f"{names[name]}.{kind}": value for name in names for kind, value in _collapsed(tensors, name, source)
    }
    if mean:
        collapsed["mean"] = torch.tensor(mean, dtype=torch.float64).reshape(1, -1, 1, 1)
        collapsed["conv_first.weight"] *= RANGE
    for name, own in plain.items():
        collapsed |= {f"{own}.{kind}": tensors[f"{name}.{kind}"] for kind in ("weight", "bias")}
    spec = ModelSpec(
        architecture="span",
        scale=scale,
        in_channels=channels,
        out_channels=channels,
        features=features,
        blocks=BLOCKS,
        growth=0,
        mean=mean,
        source_sha256=sha256,
    )
    return Layout(
        spec=spec, dialect="span", title=_TITLE, keys=dict(zip(collapsed, collapsed, strict=True))
    ), collapsed


def _refuse_other_keys(
    tensors: Mapping[str, Tensor], collapsing: list[str], plain: list[str], source: str
) -> None:
    kinds = ("weight", "bias")
    needed = [f"{name}.{part}.{kind}" for name in collapsing for part in _PARTS for kind in kinds]
    needed += [f"{name}.{kind}" for name in plain for kind in kinds]
    missing = [key for key in needed if key not in tensors]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of the {len(needed)} tensors of {_TITLE} ({keys_seen(missing)}); the "
            "file is incomplete, download or save it again"
        )
    unread = {f"{name}.eval_conv.{kind}" for name in collapsing for kind in kinds} | {"no_norm"}
    unknown = [key for key in tensors if key not in unread.union(needed)]
    if unknown:
        raise UnknownFamilyError(
            f"{source} reads like {_TITLE} and has {len(unknown)} tensors that such a net does not "
            f"({keys_seen(unknown)})"
        )


def _collapsed(tensors: Mapping[str, Tensor], name: str, source: str) -> list[tuple[str, Tensor]]:
    """Return weight and bias of the one convolution, float64.

    Raises:
        CheckpointError: A part has another shape.
    """
    weights, biases = [], []
    for part, side in zip(_PARTS, (1, 1, 3, 1), strict=True):
        weight, bias = (tensors[f"{name}.{part}.{kind}"] for kind in ("weight", "bias"))
        where = f"{source}: '{name}.{part}"
        made, _ = _sides(weight, f"{where}.weight'", side)
        if tuple(bias.shape) != (made,) or not (bias.is_floating_point() and weight.is_floating_point()):
            raise CheckpointError(
                f"{where}.bias' is {tuple(bias.shape)} {bias.dtype} by a {weight.dtype} weight of {made} outputs; "
                "the file is damaged or of another architecture"
            )
        weights.append(weight.detach().double())
        biases.append(bias.detach().double())
    skip, widen, wide, narrow = weights
    try:
        weight = torch.einsum("om,mnhw,ni->oihw", narrow[..., 0, 0], wide, widen[..., 0, 0])
        weight[:, :, 1:2, 1:2] += skip
        bias = narrow[..., 0, 0] @ (wide.sum((2, 3)) @ biases[1] + biases[2]) + biases[3] + biases[0]
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(one.shape)) for one in weights)
        raise CheckpointError(
            f"{source}: the parts of '{name}' do not fit each other ({shapes}); the file is damaged or of another "
            "architecture"
        ) from error
    return [("weight", weight), ("bias", bias)]


def _sides(weight: Tensor, where: str, side: int = 1) -> tuple[int, int]:
    shape = tuple(weight.shape)
    if len(shape) != 4 or shape[2:] != (side, side) or not all(shape):
        raise CheckpointError(
            f"{where} has the shape {shape}; a {side}x{side} convolution has (out, in, {side}, {side})"
        )
    return shape[0], shape[1]
