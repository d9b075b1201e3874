"""The scales of a quantised net: a readable file beside the weights that they belong to."""

import json
import math
from pathlib import Path

from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._files import replaced_atomically, sha256_of
from esrgan_deploy.export._names import folder_name

__all__ = ["load_scales", "save_scales", "scales_beside"]


def scales_beside(weights: Path) -> Path:
    """Return where the scales of a checkpoint are: ``model.scales.json`` for ``model.safetensors``."""
    return weights.with_name(f"{folder_name(weights.name)}.scales.json")


def save_scales(weights: Path, precision: str, scales: dict[str, float]) -> None:
    """Write the activation scales of a checkpoint beside it.

    Args:
        weights: The checkpoint, which is there.
        precision: ``"int8"`` or ``"fp8"``.
        scales: By group of `placement`: the real value of one quantisation step.
    """
    facts = {"precision": precision, "weights_sha256": sha256_of(weights), "activations": scales}
    with replaced_atomically(scales_beside(weights)) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load_scales(weights: Path, precision: str) -> dict[str, float]:
    """Read the activation scales of a checkpoint.

    Raises:
        CheckpointError: There are none, they are of another precision or of other weights, or no numbers.
    """
    path = scales_beside(weights)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{precision} needs activation scales and {path} is not there. Run: "
            f"esrgan-export --precision {precision} --calibration DIR, or make them with: esrgan-train --start "
            f"{weights} --teacher {weights} --quantize {precision} and the net's own keys"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as scales: {error}") from error
    if not isinstance(facts, dict) or facts.get("precision") != precision:
        found = facts.get("precision") if isinstance(facts, dict) else None
        raise CheckpointError(f"{path} holds scales for {found}; {precision} was asked for")
    if facts.get("weights_sha256") != sha256_of(weights):
        raise CheckpointError(
            f"{path} belongs to other weights than {weights.name} holds now; make them again"
        )
    scales = facts.get("activations")
    if not isinstance(scales, dict) or not all(
        isinstance(value, float) and math.isfinite(value) and value > 0 for value in scales.values()
    ):
        raise CheckpointError(f"{path}: activations is a table of numbers above 0; make it again")
    return scales
