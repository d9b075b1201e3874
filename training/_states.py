"""States to resume from: whole or absent, never half."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esrgan_deploy._errors import CheckpointError, TrainingError
from esrgan_deploy._optional import require
from esrgan_deploy.training.models import differing_keys

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

__all__ = ["newest_state", "restore", "save_state"]

_FACTS = "training.json"

_FREE = {
    "accumulate", "cache", "checkpointing", "device", "hr", "keep", "log_every", "lr", "milestones", "output",
    "resume", "save_every", "start", "steps", "teacher", "threads", "validate", "validate_every", "vgg", "workers",
}  # fmt: skip
"""Keys that may differ in a resumed run: folders may have moved, and a training may be made longer."""


def save_state(
    accelerator: "Accelerator", folder: Path, step: int, facts: dict[str, Any], *, keep: int
) -> Path:
    """Write ``folder/state-STEP`` and remove all but the newest ``keep``.

    It is written under another name first, so that neither a kill nor a full disk leaves a state that looks
    whole, and older ones go only after it is there.

    Args:
        accelerator: Holds the modules, optimisers and registered objects.
        folder: The training's folder.
        step: Steps taken.
        facts: JSON that `restore` gives back.
        keep: States to leave.

    Raises:
        TrainingError: It cannot be written; the older states are untouched.
    """
    target = folder / f"state-{step:08d}"
    if accelerator.is_main_process:
        for leftover in folder.glob(".state-*"):
            shutil.rmtree(leftover)
    accelerator.wait_for_everyone()
    temporary = folder / f".state-{step:08d}"
    try:
        temporary.mkdir(exist_ok=True)
        accelerator.save_state(str(temporary))
        if accelerator.is_main_process:
            (temporary / _FACTS).write_text(json.dumps({"step": step, **facts}, indent=2))
            _flush(temporary)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            for old in _states(folder)[:-keep]:
                shutil.rmtree(old)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        last = newest_state(folder)
        raise TrainingError(
            f"the state of step {step} cannot be written to {folder}: {error}. "
            + (f"{last} is whole; free some space and go on with --resume" if last else "Free some space")
        ) from error
    accelerator.wait_for_everyone()
    return target


def newest_state(folder: Path) -> Path | None:
    """Return the state with the highest step, None if there is none."""
    states = _states(folder)
    return states[-1] if states else None


def restore(
    accelerator: "Accelerator", state: Path, net: "nn.Module", config: dict[str, Any]
) -> dict[str, Any]:
    """Load a state into what was prepared and registered, and return its facts with ``step``.

    Raises:
        CheckpointError: It is damaged, or of another architecture; the differing keys are named.
        TrainingError: It was trained with other keys than ``config``, and they make another training.
    """
    load_file = require("safetensors.torch", extra="training").load_file
    try:
        found = load_file(state / "model.safetensors")
        if differing := differing_keys(accelerator.unwrap_model(net).state_dict(), found):
            raise CheckpointError(f"{state} is of another architecture than the one configured: {differing}")
        facts: dict[str, Any] = json.loads((state / _FACTS).read_text())
        _refuse_other_course(facts["config"], config, state)
        accelerator.load_state(str(state))
    except (CheckpointError, TrainingError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{state} cannot be resumed from ({type(error).__name__}: {_first_sentence(error)}). Remove it to go "
            "on from the one before"
        ) from error
    return facts


def _refuse_other_course(before: dict[str, Any], now: dict[str, Any], state: Path) -> None:
    differing = [
        f"{name} {before[name]} then, {now[name]} now"
        for name in sorted(before.keys() & now.keys() - _FREE)
        if before[name] != now[name]
    ]
    if differing:
        raise TrainingError(
            f"{state} was trained with other keys: {'; '.join(differing)}. Give them again, or another --output"
        )


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("state-*") if (path / _FACTS).is_file())


def _first_sentence(error: Exception) -> str:
    # torch explains at length how to read an unsafe file, which a damaged one is not.
    return str(error).splitlines()[0].split(". ")[0] if str(error) else "no reason given"


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
