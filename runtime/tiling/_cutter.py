"""Which tiles a picture is cut into, and into which when memory runs out."""

import dataclasses
import threading
import warnings
from pathlib import Path
from typing import Literal

from esrgan_deploy._errors import EsrganDeployError, InferenceError
from esrgan_deploy.runtime.device import MemoryFacts, device_memory, processor_memory
from esrgan_deploy.runtime.sessions import SessionInfo
from esrgan_deploy.runtime.tiling._choice import (
    LEAST_STRIP,
    PRUDENCE,
    SEAM_LEVELS,
    choose_strip,
    choose_tiling,
    fits_in_parts,
    load_tiling,
)
from esrgan_deploy.runtime.tiling._plan import AUTO_TILE, Edge, TileOptions, TilePlan, plan_tiles

__all__ = ["Cutter", "cutter_for"]

# Sizes whose plan is remembered: a film has one, a service a few.
KEPT = 64


class Cutter:
    """Plans tiles for one model, and remembers what did not fit. Used by any thread.

    Args:
        info: What the model takes.
        options: How pictures are to be cut.
        largest: Edge of the largest tile that ``"auto"`` makes.
        batch: Tiles that go through the net together, where the model allows it.
    """

    def __init__(
        self, info: SessionInfo, options: TileOptions, *, largest: int = AUTO_TILE, batch: int = 1
    ) -> None:
        self._info, self._options, self._largest = info, options, largest
        self._lock = threading.Lock()
        self._batch = max(info.min_shape[0], min(batch, info.max_shape[0]))
        self._limit: int | None = None
        self._strip: int | None = None
        self._known: dict[tuple[int, int, int | None, int, int | None], TilePlan] = {}

    def plan(self, height: int, width: int) -> TilePlan:
        """Return how a picture of that size is cut.

        Raises:
            InferenceError: No tile of the asked size can be placed.
        """
        # With what it was planned for, so that a plan from before memory ran out is not found again.
        key = (height, width, self._limit, self._batch, self._strip)
        known = self._known.get(key)
        if known is None:
            known = self._planned(*key[:4])
            with self._lock:
                if len(self._known) >= KEPT:
                    self._known.clear()
                self._known[key] = known
        return known

    def _planned(self, height: int, width: int, limit: int | None, batch: int) -> TilePlan:
        info, tile = self._info, self._options.tile
        largest = self._largest
        strips = self._in_strips(height, width)
        if strips is not None:
            return strips
        if limit is not None:
            largest = min(largest, limit)
            tile = tile if tile == "auto" else limit if tile == 0 else min(tile, limit)
        most = info.max_shape[1:]
        if tile == 0 and info.most_in_parts is not None:
            most = max(most[0], info.most_in_parts[1]), max(most[1], info.most_in_parts[2])
        plan = self._cut(height, width, tile=tile, most=most, largest=largest, batch=batch)
        in_parts = self._in_parts(plan, limit) if plan.count > 1 else None
        if in_parts is not None:
            return in_parts
        # Places of a batch that no tile fills cost as much as those that one does.
        fitting = max(info.min_shape[0], min(batch, plan.count))
        return plan if fitting == batch else dataclasses.replace(plan, batch=fitting)

    def _cut(
        self, height: int, width: int, *, tile: int | Literal["auto"], most: tuple[int, int], **how: int
    ) -> TilePlan:
        info, options = self._info, self._options
        return plan_tiles(
            height, width, tile=tile, halo=options.halo, edge=options.edge, multiple=info.size_multiple,
            scale=info.scale, least=info.min_shape[1:], most=most, **how,
        )  # fmt: skip

    def _in_parts(self, tiled: TilePlan, limit: int | None) -> TilePlan | None:
        """Return the plan of one tile, for a picture that goes through the net's parts on a GPU and not in tiles."""
        info, options = self._info, self._options
        if info.most_in_parts is None or options.tile != "auto" or options.strip == 0:
            return None
        try:
            plan = self._cut(tiled.height, tiled.width, tile=0, most=info.most_in_parts[1:])
        except InferenceError:
            return None
        pixels = plan.tile[0] * plan.tile[1]
        if limit is not None and pixels > limit**2:
            return None
        return plan if fits_in_parts(info, pixels, memory=_memory(info)) else None

    def _in_strips(self, height: int, width: int) -> TilePlan | None:
        info, options = self._info, self._options
        if info.parts is None or options.tile != "auto" or options.strip == 0:
            return None
        plan = self._cut(height, width, tile=0, most=info.max_shape[1:])
        rows, columns = plan.tile
        if options.strip is None and rows * columns <= AUTO_TILE**2:
            return None
        strip = options.strip or choose_strip(info, columns, rows, memory=_memory(info))
        if self._strip is not None:
            strip = min(strip, self._strip)
        step = info.parts.step
        return dataclasses.replace(plan, strip=max(1, strip // step) * step)

    def smaller(self, plan: TilePlan) -> tuple[TilePlan, str]:
        """Return a plan for the same picture that needs about half the memory, and say so in a phrase.

        What did not fit is remembered: later pictures are cut no larger.

        Raises:
            InferenceError: There is none.
        """
        name = self._info.name
        with self._lock:
            if plan.strip:
                self._strip = self._smaller_strip(plan)
                said = (
                    f"{name}: memory ran out with strips of {plan.strip} rows; going on with {self._strip}. "
                )
                said += f"Set strip={self._strip} to start there"
            elif plan.batch > self._info.min_shape[0]:
                self._batch = max(self._info.min_shape[0], min(self._batch, plan.batch // 2))
                said = f"{name}: memory ran out with {plan.batch} tiles at once; going on with {self._batch}"
            else:
                edge = max(plan.tile) // 2
                if edge <= 2 * plan.halo:
                    raise InferenceError(
                        f"{name}: memory ran out with tiles of {plan.tile[1]}x{plan.tile[0]}, and half of that "
                        f"leaves nothing between two halos of {plan.halo}"
                    )
                self._limit = edge if self._limit is None else min(self._limit, edge)
                said = (
                    f"{name}: memory ran out with tiles of {plan.tile[1]}x{plan.tile[0]}; going on with "
                    f"{self._limit}. Set tile={self._limit} to start there"
                )
        smaller = self.plan(plan.height, plan.width)
        if smaller.strip and plan.strip:
            return smaller, said
        if _pixels(smaller) >= _pixels(plan):
            raise InferenceError(f"{name}: memory ran out with the smallest tile that the model takes")
        return smaller, said

    def _smaller_strip(self, plan: TilePlan) -> int:
        if plan.strip < 2 * LEAST_STRIP:
            raise InferenceError(
                f"{self._info.name}: memory ran out with strips of {plan.strip} rows, {plan.width} columns wide"
            )
        # Of the strip that there is room for in the picture.
        return min(plan.strip, plan.tile[0]) // 2


def cutter_for(
    info: SessionInfo,
    path: Path | None,
    *,
    tile: int | Literal["auto"],
    halo: int | None,
    edge: Edge = "repeat",
    strip: int | None = None,
) -> Cutter:
    """Return what cuts pictures for an artefact: as asked, and where nothing was, as measured and as memory allows.

    Args:
        info: Of its session.
        path: The artefact, beside which the measurement of its seams is looked for; None where it has no file.
        tile: As `TileOptions` takes it.
        halo: The same, or None for the measured one.
        edge: The same.
        strip: The same.

    Raises:
        InferenceError: A strip was asked for, and the graph has no parts.
        ValueError: Tile and halo do not fit each other.
    """
    # Before anything is looked up, so that a wrong number is refused as such.
    TileOptions(tile=tile, halo=halo or 0, edge=edge, strip=strip)
    if strip and info.parts is None:
        raise InferenceError(
            f"strip is {strip} and {info.name} has no parts here; leave it out, or run: esrgan-export, which cuts an "
            "RRDBNet or SRVGGNetCompact into parts that ONNX Runtime runs on a processor"
        )
    curve = load_tiling(path) if path is not None and halo is None else None
    if tile == "auto":
        choice = choose_tiling(info, memory=_memory(info), curve=curve)
        if halo is None:
            # With parts, what it warns of does not happen.
            if choice.warning and (info.parts is None or strip == 0):
                warnings.warn(f"{info.name}: {choice.warning}", RuntimeWarning, stacklevel=4)
            halo = choice.halo
        options = TileOptions(tile="auto", halo=halo, edge=edge, strip=strip)
        # On a processor one tile at a time leaves nothing idle, and holds the least.
        batch = choice.batch if info.device >= 0 else 1
        return Cutter(info, options, largest=max(choice.tile, 2 * halo + 1), batch=batch)
    if halo is None:
        found = curve.halo_for(SEAM_LEVELS / PRUDENCE) if curve else None
        halo = TileOptions().halo if found is None else found
    return Cutter(info, TileOptions(tile=tile, halo=halo, edge=edge))


def _memory(info: SessionInfo) -> MemoryFacts:
    if info.device >= 0:
        try:
            return device_memory(info.device)
        except (EsrganDeployError, ImportError):
            # A session that computes on a GPU by other means than the driver's bindings; what is free is unknown.
            return MemoryFacts(free_bytes=8 * 2**30, l2_bytes=None, kind="gpu")
    return processor_memory()


def _pixels(plan: TilePlan) -> int:
    return plan.batch * plan.tile[0] * plan.tile[1]
