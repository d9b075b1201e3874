"""Never a black picture: a batch that is none is made again with more range, or refused."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import EsrganDeployError
from esrgan_deploy.runtime._fallback import fallback_for
from esrgan_deploy.runtime._open_session import open_session
from esrgan_deploy.runtime._session import Made, Session, SessionInfo, SessionOptions
from esrgan_deploy.runtime._tile_runner import fill
from esrgan_deploy.runtime._tiling import Tile, TilePlan
from esrgan_deploy.runtime._watchdog import bad_picture_error, judge

__all__ = ["Guard"]

Array = npt.NDArray[Any]


class Guard:
    """Looks at every batch, and holds the artefact that makes a bad one again. Used by any thread.

    Args:
        path: The artefact that is run; None where it came as an open session, and nothing is known beside it.
        options: How to open another one.
    """

    def __init__(self, path: Path | None, options: SessionOptions) -> None:
        self._path, self._options = path, options
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._looked = False
        self.reruns = 0

    def check(
        self,
        made: Made,
        given: Array,
        info: SessionInfo,
        plan: TilePlan,
        tiles: Sequence[Tile],
        source: Array,
    ) -> tuple[Made, SessionInfo]:
        """Return the batch if it is sound, else another one of the same tiles, with its session's description.

        Args:
            made: What a slot made; see `run_batch` for the others.
            given: The batch that it was made of.
            info: Of the slot's session.
            plan: Where the tiles lie.
            tiles: Those in the batch.
            source: The picture.

        Raises:
            InferenceError: The batch is no picture, and nothing here makes a better one.
        """
        wrong = judge(made, info, len(tiles), given=given)
        if wrong is None:
            return made, info
        with self._lock:
            session = self._wider(info)
            if session is None:
                raise bad_picture_error(wrong, info)
            batch = np.empty(session.info.batch_shape(plan.batch, *plan.tile), session.info.dtype)
            fill(batch, session.info, plan, tiles, source)
            again = Made(session.run(batch).copy())
            self.reruns += 1
        still = judge(again, session.info, len(tiles), given=batch)
        if still is not None:
            raise bad_picture_error(still, session.info)
        return again, session.info

    def close(self) -> None:
        """Release what was opened; a second call does nothing."""
        with self._lock:
            session, self._session, self._looked = self._session, None, True
        if session is not None:
            session.close()

    def _wider(self, info: SessionInfo) -> Session | None:
        if not self._looked and self._path is not None:
            beside = fallback_for(self._path, info)
            try:
                self._session = None if beside is None else open_session(beside, self._options)
            except EsrganDeployError:
                # It would have been a help; without it the frame is refused, which says what to do.
                self._session = None
        self._looked = True
        return self._session
