"""Measurements that survive an interruption."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esrgan_deploy._files import replaced_atomically
from esrgan_deploy.export.quantisation._simulation import Simulation
from esrgan_deploy.export.quantisation.search._loss import HeldLoss, Loss

__all__ = ["Ledger", "digest_of"]

_SCHEMA = 3

_INFINITE = ("fidelity", "worst")
"""Figures of a `Loss` that are infinite where nothing differs."""


class Ledger:
    """What was measured so far, kept in a file that is replaced after every measurement.

    A file that belongs to other weights, scales or pictures, or that cannot be read, is ignored and written anew.

    Args:
        path: The file, whose folder is made where it is missing; None keeps nothing beyond this object. Where it
            cannot be written, nothing is kept either, and a line says so.
        digest: Of everything that the measurements depend on (see `digest_of`).
        say: Receives a line when a file is ignored or taken up.
        progress: Called with the number of measurements made by this object after each one, when it is kept.
    """

    def __init__(
        self,
        path: Path | None = None,
        digest: str = "",
        *,
        say: Callable[[str], None] = lambda line: None,
        progress: Callable[[int], None] = lambda made: None,
    ) -> None:
        self._path, self._digest, self._say, self._progress = path, digest, say, progress
        self._known: dict[tuple[str, tuple[str, ...]], Loss] = {}
        self.made = 0
        if path is not None and path.exists():
            self._take_up(path)

    def measured(self, kind: str, names: Iterable[str], measure: Callable[[], Loss]) -> Loss:
        """Return what is known of these convolutions quantised, measured now if it is not.

        Args:
            kind: On what: convolutions quantised alone and the whole are measured on different pictures.
            names: The quantised convolutions, in any order.
            measure: Measures them.
        """
        key = kind, tuple(sorted(names))
        if key not in self._known:
            self._known[key] = measure()
            self.made += 1
            self._keep()
            self._progress(self.made)
        return self._known[key]

    def _take_up(self, path: Path) -> None:
        try:
            data = json.loads(path.read_text())
            belongs = data["schema"] == _SCHEMA and data["digest"] == self._digest
            entries = [_entry(one) for one in data["measured"]] if belongs else []
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._say(f"{path} cannot be read ({type(error).__name__}), so the search starts anew")
            return
        if not belongs:
            self._say(f"{path} belongs to other weights, scales or pictures, so the search starts anew")
            return
        self._known = dict(entries)
        self._say(f"an interrupted search goes on after {len(self._known)} measurements ({path})")

    def _keep(self) -> None:
        if self._path is None:
            return
        entries = [
            {"kind": kind, "names": list(names), **_plain(loss)}
            for (kind, names), loss in self._known.items()
        ]
        data = {"schema": _SCHEMA, "digest": self._digest, "measured": entries}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_atomically(self._path) as temporary:
                temporary.write_text(json.dumps(data))
        except OSError as error:
            # A search of ten minutes is worth more than the chance to go on with it.
            self._say(
                f"{self._path} cannot be written ({error.strerror}); an interrupted search will start anew"
            )
            self._path = None


def digest_of(simulation: Simulation, held: HeldLoss, facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what measurements of a simulation depend on, 64 hexadecimal digits.

    Args:
        simulation: Its module's weights and its recipe count.
        held: Its pictures, truths and fp32 outputs count.
        facts: Whatever else does, as JSON can carry it.
    """
    found = hashlib.sha256()

    def add(name: str, value: object) -> None:
        array = value.detach().numpy() if isinstance(value, Tensor) else value
        found.update(f"{name} ".encode())
        if isinstance(array, np.ndarray):
            found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        else:
            found.update(repr(array).encode())

    for name, tensor in sorted(simulation.module.state_dict().items()):
        add(name, tensor)
    # Whatever a recipe holds, so that what it comes to hold later counts as well.
    for field in dataclasses.fields(simulation.recipe):
        for name, value in sorted(getattr(simulation.recipe, field.name).items()):
            add(f"{field.name} {name}", value)
    add("pictures", held.digest())
    add("facts", json.dumps({**facts, "torch": torch.__version__}, sort_keys=True))
    return found.hexdigest()


def _entry(data: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], Loss]:
    values = {field.name: data[field.name] for field in dataclasses.fields(Loss)}
    for name in _INFINITE:
        if values[name] is None:
            values[name] = math.inf
    for name in (*_INFINITE, "shift", "noise"):
        values[name] = float(values[name])
    return (str(data["kind"]), tuple(str(name) for name in data["names"])), Loss(**values)


def _plain(loss: Loss) -> dict[str, Any]:
    # JSON has no infinity.
    data = dataclasses.asdict(loss)
    return data | {name: None for name in _INFINITE if math.isinf(data[name])}
