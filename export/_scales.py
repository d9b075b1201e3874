"""What a training with fake quantisation leaves beside its weights: the recipe that an export then writes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from esrgan_deploy._errors import CheckpointError
from esrgan_deploy.export.checkpoints import folder_name, load_checkpoint
from esrgan_deploy.export.graphs import Recipe, weight_steps
from esrgan_deploy.export.nets import Layer, layers
from esrgan_deploy.export.quantisation import KeptRecipe, Net, load_recipe, save_recipe

__all__ = ["recipe_of_scales", "save_scales", "scales_beside", "trained_recipe"]


def scales_beside(weights: Path) -> Path:
    """Return where the scales of a checkpoint are: ``model.scales.json`` for ``model.safetensors``."""
    return weights.with_name(f"{folder_name(weights.name)}.scales.json")


def save_scales(
    weights: Path, precision: str, scales: Mapping[str, float], *, scale: int | None = None
) -> None:
    """Write the recipe of a trained checkpoint beside it.

    Args:
        weights: The checkpoint, which is there.
        precision: ``"int8"`` or ``"fp8"``.
        scales: By group of `placement`: the real value of one quantisation step.
        scale: See `load_checkpoint`.
    """
    checkpoint = load_checkpoint(weights, scale=scale)
    net = Net(module=checkpoint.module(), spec=checkpoint.spec)
    kept = KeptRecipe(
        recipe=recipe_of_scales(net.module, layers(net.spec), precision, scales),
        weights_sha256=net.sha256,
        asked={"format": precision, "training": True},
    )
    save_recipe(scales_beside(weights), kept)


def trained_recipe(weights: Path, net: Net, precision: str) -> KeptRecipe | None:
    """Read what a training left beside a checkpoint; None where it left nothing.

    Args:
        weights: The checkpoint.
        net: What it holds.
        precision: ``"int8"`` or ``"fp8"``.

    Raises:
        CheckpointError: It is of another precision or of other weights.
        ExportError: It is no file of scales.
    """
    path = scales_beside(weights)
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where the name is too long
        return None
    kept = load_recipe(path)
    found = kept.asked.get("format")
    if found != precision:
        raise CheckpointError(f"{path} holds scales for {found}; {precision} was asked for")
    if kept.weights_sha256 != net.sha256:
        raise CheckpointError(
            f"{path} belongs to other weights than {weights.name} holds now; make them again"
        )
    return kept


def recipe_of_scales(
    module: nn.Module, found: Sequence[Layer], precision: str, scales: Mapping[str, float]
) -> Recipe:
    """Return the recipe of a net trained with fake quantisation: its body, and each channel's largest weight.

    Args:
        module: The net, fp32.
        found: Its convolutions.
        precision: ``"int8"`` or ``"fp8"``.
        scales: By group, the real value of one step of its activations.
    """
    steps = {
        layer.name: weight_steps(
            module.get_submodule(layer.name).get_parameter("weight").detach().numpy(),
            layer,
            precision,
            per_channel=True,
        )
        for layer in found
        if layer.place == "body"
    }
    return Recipe(formats=dict.fromkeys(steps, precision), activations=dict(scales), weights=steps)
