"""Never a black picture: a batch that is none is made again with more range, or refused."""

import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from esrgan_deploy._errors import EsrganDeployError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._flavour import flavour_is_installed
from esrgan_deploy._manifest import Artefact, Manifest, manifest_beside
from esrgan_deploy.runtime.device import cuda_device_count
from esrgan_deploy.runtime.sessions import (
    Array,
    BatchOutput,
    PartsSlot,
    Session,
    SessionInfo,
    SessionOptions,
    Slot,
    bad_picture_error,
    judge,
    open_session,
    widened,
)
from esrgan_deploy.runtime.tiling import Placed, Tile, TilePlan, fill, run_strips

__all__ = ["Guard", "fallback_for"]


# What each can hold: 65504, 3.39e38 and 3.40e38. Quantised graphs hold in fp16 what is not quantised.
_RANGE = {"fp8": 0, "int8": 0, "fp16": 0, "bf16": 1, "fp32": 2}

# In order of preference. ONNX Runtime has no bf16 convolutions.
_CHOICES = (("plan", "bf16"), ("plan", "fp32"), ("onnx", "fp32"))


def fallback_for(path: Path, info: SessionInfo) -> Path | None:
    """Return the artefact beside another one that can make its bad frames again, with more range.

    A bf16 plan, else an fp32 plan, both where there is a GPU and the plan's TensorRT, else the fp32 graph. It is of
    the same export: the manifest lists both files with the digests that they have, and it enlarges by the same factor
    with the same channels. One that is marked as not verified is not taken, nor is a plan for fewer sizes.

    Args:
        path: The artefact whose frame was bad.
        info: Of its session.

    Returns:
        None where no manifest lies beside it, it lists no such artefact, or this one has the most range already.
    """
    manifest = manifest_beside(path)
    mine = manifest.artefact(path.name) if manifest else None
    if manifest is None or mine is None or not _is_as_listed(path, mine):
        return None
    channels = (manifest.spec.in_channels, manifest.spec.out_channels)
    if channels != (info.in_channels, info.out_channels):
        return None
    # A plan's scale is what its sizes show.
    if mine.outscale is None or not math.isclose(mine.outscale, info.scale, rel_tol=1e-3):
        return None
    for other in _wider(manifest, mine):
        beside = path.with_name(other.file)
        if _takes_all(other, info) and beside != path and _is_as_listed(beside, other):
            return beside
    return None


def _wider(manifest: Manifest, mine: Artefact) -> Iterator[Artefact]:
    gpu = cuda_device_count() > 0
    least = _RANGE.get(mine.precision, len(_RANGE))
    for kind, precision in _CHOICES:
        if _RANGE[precision] <= least or (kind == "plan" and not gpu):
            continue
        found = [a for a in manifest.artefacts if (a.kind, a.precision) == (kind, precision)]
        # Its own form first: the frame need not be converted.
        for other in sorted(found, key=lambda a: a.form != mine.form):
            # Plain names only: a manifest that was tampered with must not reach outside its folder.
            plain = Path(other.file).name == other.file
            if kind == "plan" and not flavour_is_installed(other.flavour):
                continue
            if plain and other.outscale == mine.outscale and other.verified is not False:
                yield other


def _takes_all(other: Artefact, info: SessionInfo) -> bool:
    if info.size_multiple % other.size_multiple:
        return False
    if not other.shapes:
        return True
    least, _, most = other.shapes
    return all(low <= size for low, size in zip(least, info.min_shape, strict=True)) and all(
        size <= high for size, high in zip(info.max_shape, most, strict=True)
    )


def _is_as_listed(path: Path, listed: Artefact) -> bool:
    try:
        return path.stat().st_size == listed.size and sha256_of(path) == listed.sha256
    except OSError:
        return False


class _NoPictureError(Exception):
    """What is wrong with a piece of a picture, as `judge` says it."""


def _refuse(made: BatchOutput, info: SessionInfo) -> None:
    wrong = judge(made, info, 1)
    if wrong is not None:
        raise _NoPictureError(wrong)


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
        made: BatchOutput,
        given: Array,
        info: SessionInfo,
        plan: TilePlan,
        tiles: Sequence[Tile],
        source: Array,
    ) -> tuple[BatchOutput, SessionInfo]:
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
        """  # noqa: DOC501  what bad_picture_error returns
        wrong = judge(made, info, len(tiles), given=given)
        if wrong is None:
            return made, info
        with self._lock:
            session = self._wider(info)
            if session is None:
                raise bad_picture_error(wrong, info)
            batch = np.empty(session.info.batch_shape(plan.batch, *plan.tile), session.info.dtype)
            fill(batch, session.info, plan, tiles, source)
            again = BatchOutput(session.run(batch).copy())
            self.reruns += 1
        still = judge(again, session.info, len(tiles), given=batch)
        if still is not None:
            raise bad_picture_error(still, session.info)
        return again, session.info

    def run_strips(
        self, slot: Slot, info: SessionInfo, plan: TilePlan, source: Array, target: Array, *, placed: Placed
    ) -> None:
        """Enlarge a picture in strips; where one is no picture, all of it again with more range.

        Args:
            slot: Of the session.
            info: The same.
            plan: See `esrgan_deploy.runtime.tiling.run_strips`; so are the others.
            source: The picture.
            target: Where it goes.
            placed: Called with rows that are in place.

        Raises:
            InferenceError: A strip is no picture, and nothing here makes a better one.
        """  # noqa: DOC501  what bad_picture_error returns

        def strips(slot: Slot, info: SessionInfo) -> str | None:
            try:
                run_strips(
                    # Nothing is planned in strips for a session that has no parts.
                    cast(PartsSlot, slot).parts,
                    info,
                    plan,
                    source,
                    target,
                    check=lambda made: _refuse(made, info),
                    placed=placed,
                )
            except _NoPictureError as error:
                return str(error)
            return None

        wrong = strips(slot, info)
        if wrong is None:
            return
        with self._lock:
            session = self._wider(info)
            if session is None or session.info.parts is None:
                raise bad_picture_error(wrong, info)
            self.reruns += 1
            still = strips(session.slot(), session.info)
        if still is not None:
            raise bad_picture_error(still, session.info)

    def close(self) -> None:
        """Release what was opened; a second call does nothing."""
        with self._lock:
            session, self._session, self._looked = self._session, None, True
        if session is not None:
            session.close()

    def _wider(self, info: SessionInfo) -> Session | None:
        if not self._looked and self._path is not None:
            # What computes in less than its file's precision has it at hand.
            beside = self._path if info.computes else fallback_for(self._path, info)
            try:
                self._session = None if beside is None else open_session(beside, widened(self._options))
            except EsrganDeployError:
                # It would have been a help; without it the frame is refused, which says what to do.
                self._session = None
        self._looked = True
        return self._session
