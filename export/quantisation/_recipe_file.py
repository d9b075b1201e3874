"""A recipe on disk: a readable file of scales, and beside it the parameters that were rewritten."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from torch import nn

from esrgan_deploy._errors import ExportError
from esrgan_deploy._files import replaced_atomically, sha256_of
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.graphs import Array, Recipe

__all__ = ["KeptRecipe", "Net", "load_recipe", "parameters_beside", "save_recipe"]

SCHEMA = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptRecipe:
    """A recipe with what has to be known to use it again.

    Attributes:
        recipe: What is quantised and how.
        weights_sha256: Digest of the net that it belongs to, `Net.sha256`.
        asked: What decided it: the options, and the digest of the pictures.
        facts: What was found on the way: pictures, sensitivity, frontier, the loss that was measured.
    """

    recipe: Recipe
    weights_sha256: str
    asked: Mapping[str, Any]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Net:
    """What is to be quantised.

    Attributes:
        module: The generator in fp32, in eval mode; it is not changed.
        spec: What it is.
    """

    module: nn.Module
    spec: ModelSpec

    @property
    def sha256(self) -> str:
        """Digest of what decides what it computes, 64 hexadecimal digits: its weights, and what is made of them.

        A file's own digest is not enough: two files may be interpolated, and a scale be asked for.
        """
        facts = {**dataclasses.asdict(self.spec), "source_sha256": ""}
        found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            array = np.ascontiguousarray(tensor.numpy())
            found.update(f"{name} {array.dtype}{array.shape}".encode() + array.tobytes())
        return found.hexdigest()


def parameters_beside(path: Path) -> Path:
    """Return where rewritten parameters are: ``model.int8.weights.safetensors`` for ``model.int8.scales.json``."""
    return path.with_name(path.name.removesuffix(".scales.json") + ".weights.safetensors")


def save_recipe(path: Path, kept: KeptRecipe) -> list[Path]:
    """Write a recipe, whole or not at all; returns the files.

    Args:
        path: ``….scales.json``. Parameters that were changed go beside it, see `parameters_beside`.
        kept: What to write.

    Raises:
        OSError: The folder cannot be written.
    """
    recipe, files = kept.recipe, [path]
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "weights_sha256": kept.weights_sha256,
        "asked": dict(kept.asked),
        "formats": dict(recipe.formats),
        "activations": {group: float(step) for group, step in recipe.activations.items()},
        "weights": {name: np.asarray(steps, np.float64).tolist() for name, steps in recipe.weights.items()},
        "inputs": {group: list(ends) for group, ends in recipe.inputs.items()},
        "outputs": {name: list(ends) for name, ends in recipe.outputs.items()},
        "multipliers": {
            group: np.asarray(factors, np.float64).tolist() for group, factors in recipe.multipliers.items()
        },
        "remainders": {group: list(channels) for group, channels in recipe.remainders.items()},
        "parameters_sha256": None,
        "facts": dict(kept.facts),
    }
    if recipe.parameters:
        beside = parameters_beside(path)
        arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in recipe.parameters.items()}
        with replaced_atomically(beside) as temporary:
            temporary.write_bytes(safetensors.numpy.save(arrays))
        data["parameters_sha256"] = sha256_of(beside)
        files.append(beside)
    with replaced_atomically(path) as temporary:
        temporary.write_text(_readable(data) + "\n", encoding="utf-8")
    return files


def load_recipe(path: Path) -> KeptRecipe:
    """Read a recipe.

    Raises:
        ExportError: It is not there, not one, of another schema, or its parameters are not those it was kept with.
    """  # noqa: DOC501  ValueError is caught here
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"it is none, or an earlier version wrote it: its schema is not {SCHEMA}")
        recipe = Recipe(
            formats=dict(data["formats"]),
            activations={group: float(step) for group, step in data["activations"].items()},
            weights={name: np.asarray(steps, np.float32) for name, steps in data["weights"].items()},
            parameters=_parameters(path, data["parameters_sha256"]),
            inputs=_ranges(data["inputs"]),
            outputs=_ranges(data["outputs"]),
            multipliers={
                group: np.asarray(factors, np.float32)
                for group, factors in data.get("multipliers", {}).items()
            },
            remainders={
                group: tuple(map(int, channels)) for group, channels in data.get("remainders", {}).items()
            },
        )
        _check(recipe)
        return KeptRecipe(
            recipe=recipe,
            weights_sha256=str(data["weights_sha256"]),
            asked=dict(data["asked"]),
            facts=dict(data["facts"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise ExportError(
            f"{path} cannot be used as scales ({error}). Remove it, and calibrate again with --calibration DIR"
        ) from error


def _ranges(table: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {name: (float(low), float(high)) for name, (low, high) in table.items()}


def _parameters(path: Path, digest: str | None) -> dict[str, Array]:
    if digest is None:
        return {}
    beside = parameters_beside(path)
    if sha256_of(beside) != digest:
        raise ValueError(f"{beside.name} is not the file that it was written with")
    return safetensors.numpy.load_file(beside)


def _check(recipe: Recipe) -> None:
    for name, kind in recipe.formats.items():
        if kind not in ("int8", "fp8"):
            raise ValueError(f"the format of {name} is {kind!r}")
    tables = (*recipe.weights.values(), *recipe.multipliers.values())
    numbers = [*recipe.activations.values(), *(float(v) for a in tables for v in a.ravel())]
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError("a step or a multiplier is not a number above 0")
    lacking = set(recipe.formats) - set(recipe.weights)
    if lacking:
        raise ValueError(f"{sorted(lacking)[0]} has no weight steps")


def _readable(data: Mapping[str, Any]) -> str:
    # One line for each entry of a table: thousands of weight steps would else take a line each.
    parts = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            entries = ",\n".join(
                f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items()
            )
            parts.append(f"  {json.dumps(key)}: {{\n{entries}\n  }}")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}"
