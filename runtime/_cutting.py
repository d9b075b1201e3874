"""Which tiles a picture is cut into, and into which when memory runs out."""

import threading

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime._session import SessionInfo
from esrgan_deploy.runtime._tiling import TileOptions, TilePlan, plan_tiles

__all__ = ["Cutter"]


class Cutter:
    """Plans tiles for one model, and remembers what did not fit. Used by any thread.

    Args:
        info: What the model takes.
        options: How pictures are to be cut.
        batch: Tiles that go through the net together, where the model allows it.
    """

    def __init__(self, info: SessionInfo, options: TileOptions, *, batch: int = 1) -> None:
        self._info, self._options = info, options
        self._lock = threading.Lock()
        self._batch = max(info.min_shape[0], min(batch, info.max_shape[0]))
        self._limit: int | None = None

    def plan(self, height: int, width: int) -> TilePlan:
        """Return how a picture of that size is cut.

        Raises:
            InferenceError: No tile of the asked size can be placed.
        """
        info, tile = self._info, self._options.tile
        with self._lock:
            limit, batch = self._limit, self._batch
        if limit is not None and not (tile == "auto" and max(height, width) <= limit):
            tile = limit if tile in ("auto", 0) else min(tile, limit)
        return plan_tiles(
            height,
            width,
            tile=tile,
            halo=self._options.halo,
            multiple=info.size_multiple,
            scale=info.scale,
            batch=batch,
            least=info.min_shape[1:],
            most=info.max_shape[1:],
        )

    def smaller(self, plan: TilePlan) -> tuple[TilePlan, str]:
        """Return a plan for the same picture that needs about half the memory, and say so in a phrase.

        What did not fit is remembered: later pictures are cut no larger.

        Raises:
            InferenceError: There is none.
        """
        name = self._info.name
        with self._lock:
            if plan.batch > self._info.min_shape[0]:
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
        if _pixels(smaller) >= _pixels(plan):
            raise InferenceError(f"{name}: memory ran out with the smallest tile that the model takes")
        return smaller, said


def _pixels(plan: TilePlan) -> int:
    return plan.batch * plan.tile[0] * plan.tile[1]
