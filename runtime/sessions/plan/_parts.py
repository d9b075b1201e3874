"""The plans of a trunk and of a tail beside a plan, and whether they are loaded. Not run on a GPU so far."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import DeviceLostError, EngineMismatchError, EsrganDeployError
from esrgan_deploy._files import PARTS, part_of
from esrgan_deploy._manifest import Artefact
from esrgan_deploy.runtime.device import Device
from esrgan_deploy.runtime.sessions._protocol import SessionInfo
from esrgan_deploy.runtime.sessions.plan._admit import Admitted, check_plan
from esrgan_deploy.runtime.sessions.plan._engine import PlanEngine
from esrgan_deploy.runtime.sessions.plan._fit import Refusal

__all__ = ["PlanParts", "open_parts"]


class PlanParts:
    """Trunk and tail of one graph, loaded.

    Args:
        trunk: From the picture to the map.
        tail: From a tile of the map to its pixels.
        reach: Of the tail, in rows and columns of the map.
        info: Of the plan that they lie beside.
    """

    def __init__(self, trunk: PlanEngine, tail: PlanEngine, reach: int, info: SessionInfo) -> None:
        self.trunk, self.tail, self.reach = trunk, tail, reach
        self._multiple = info.size_multiple
        side = 1 if info.form == "uint8" else 2
        least, _, most = (shape[side : side + 2] for shape in trunk.profile)
        self._least: tuple[int, ...] = least
        self.most = (1, most[0], most[1])

    def takes(self, shape: tuple[int, int, int]) -> bool:
        """Whether a batch of ``(N, H, W)`` goes through them."""
        number, *sides = shape
        return number == 1 and all(
            low <= side <= high and side % self._multiple == 0
            for low, side, high in zip(self._least, sides, self.most[1:], strict=True)
        )


def open_parts(
    admitted: Admitted, device: Device, info: SessionInfo, *, cuda_graph: bool
) -> PlanParts | None:
    """Load the parts that lie beside a plan; None where there are none, and a warning where they cannot be loaded.

    They are code as the plan is: the manifest that vouches for it has to list them too, as parts of the same graph.

    Args:
        admitted: The plan.
        device: Its context is current in the calling thread.
        info: Of the plan.
        cuda_graph: See `PlanEngine`.

    Raises:
        DeviceLostError: The device computes nothing any more.
    """
    whole, paths = admitted.artefact, [part_of(admitted.path, name) for name in PARTS]
    if whole is None or not all(path.exists() for path in paths):
        return None
    engines: list[PlanEngine] = []
    try:
        found = [_checked(path, whole, admitted) for path in paths]
        engines += [_Part(part, device, cuda_graph=cuda_graph) for part, _ in found]
        return PlanParts(engines[0], engines[1], found[1][1].reach, info)
    except DeviceLostError:
        raise
    except EsrganDeployError as error:
        warnings.warn(
            f"{info.name}: pictures too large for it go in tiles that overlap, as {one_line(error)}. "
            "Run: esrgan-export again here, with --force",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _checked(path: Path, whole: Artefact, admitted: Admitted) -> tuple[Admitted, Artefact]:
    found = check_plan(path, facts=admitted.facts, kind="part")
    if isinstance(found, Refusal):
        raise EngineMismatchError(f"{path.name} {found.reason}")
    entry = found.artefact
    if entry is None or (entry.built_from, entry.form) != (whole.built_from, whole.form):
        raise EngineMismatchError(f"{path.name} is no part of {whole.file}")
    return found, entry


class _Part(PlanEngine):
    def _dtype(self, name: str) -> np.dtype[Any]:
        # The map is only copied, so that numpy need not know its dtype.
        if self._engine.get_tensor_dtype(name).name == "BF16":
            return np.dtype(np.uint16)
        return super()._dtype(name)
