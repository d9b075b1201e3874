"""Crops: sample number n of a training is a pure function of the seed and n.

Nothing about a crop depends on what was drawn before it, in which process or by which worker. That makes a
resumed training see what an unbroken one sees, and two processes what one sees at the same global batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from esrgan_deploy.training.data._degrade import Degradation
from esrgan_deploy.training.data._pictures import Pair

__all__ = ["Crops", "batches"]

Picture = npt.NDArray[np.uint8]


class Crops(Dataset[tuple[Tensor, Tensor, int]]):
    """HR crops and their LR, by number.

    Args:
        pairs: The decoded pictures.
        scale: HR pixels per LR pixel and axis.
        crop: Side of an LR crop.
        seed: Of everything drawn.
        augment: Flip and turn.
        detail: Places drawn for each crop; the one with the largest mean step between neighbours is taken.
        degradation: Makes LR from the HR crop; None takes it from the pair.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        scale: int,
        crop: int,
        seed: int,
        augment: bool,
        detail: int = 1,
        degradation: Degradation | None = None,
    ) -> None:
        self._pairs = pairs
        self._scale, self._crop, self._seed = scale, crop, seed
        self._augment, self._detail, self._degradation = augment, detail, degradation
        # By area, so that every crop of the collection is as likely as every other.
        self._bounds = np.cumsum([pair.size[0] * pair.size[1] for pair in pairs])
        self._mapped: dict[Path, Picture] = {}

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, int]:
        """Return LR ``(3, crop, crop)`` and HR ``(3, crop·scale, crop·scale)``, uint8, and the number."""
        dice = np.random.default_rng((self._seed, number))
        pair, top, left = self._place(dice)
        lr, hr = self._cut(pair, top, left)
        if self._augment:
            turns, mirrored = int(dice.integers(4)), bool(dice.integers(2))
            lr, hr = _turned(lr, turns, mirrored), _turned(hr, turns, mirrored)
        if self._degradation is not None:
            lr = self._degradation(hr, dice)
        # HWC in memory, seen as CHW: the layout that GPUs convolve fastest.
        return _as_tensor(lr), _as_tensor(hr), number

    def source(self, number: int) -> Path:
        """Return the HR file that a sample is cut from."""
        return self._place(np.random.default_rng((self._seed, number)))[0].source

    def _place(self, dice: np.random.Generator) -> tuple[Pair, int, int]:
        best: tuple[float, Pair, int, int] | None = None
        for _ in range(self._detail):
            pair = self._pairs[int(np.searchsorted(self._bounds, dice.integers(self._bounds[-1]), "right"))]
            top, left = (int(dice.integers(side - self._crop + 1)) for side in pair.size)
            if self._detail == 1:
                return pair, top, left
            lr = self._map(pair.lr)[top : top + self._crop, left : left + self._crop, 1].astype(np.int16)
            score = float(np.abs(np.diff(lr, axis=0)).mean() + np.abs(np.diff(lr, axis=1)).mean())
            if best is None or score > best[0]:
                best = score, pair, top, left
        assert best is not None
        return best[1:]

    def _cut(self, pair: Pair, top: int, left: int) -> tuple[Picture, Picture]:
        scale, crop = self._scale, self._crop
        lr = self._map(pair.lr)[top : top + crop, left : left + crop]
        hr = self._map(pair.hr)[top * scale : (top + crop) * scale, left * scale : (left + crop) * scale]
        return lr, hr

    def _map(self, path: Path) -> Picture:
        # A thousand maps are open at most: systems limit them.
        if path not in self._mapped:
            if len(self._mapped) >= 1000:
                self._mapped.pop(next(iter(self._mapped)))
            self._mapped[path] = np.load(path, mmap_mode="r")
        return self._mapped[path]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_mapped": {}}


def batches(
    *, start: int, steps: int, batch: int, parts: int, process: int, processes: int
) -> Iterator[list[int]]:
    """Yield the sample numbers of each part of each step that one process takes.

    Step s has the samples ``s·batch`` to ``(s + 1)·batch - 1``, whatever the number of processes and parts.

    Args:
        start: First step.
        steps: Step to end before.
        batch: Samples of a step over all processes; a multiple of ``parts · processes``.
        parts: Parts in which a process takes its share, one backward pass each.
        process: This process, from 0.
        processes: How many there are.
    """
    size = batch // (parts * processes)
    for step in range(start, steps):
        for part in range(parts):
            first = step * batch + (part * processes + process) * size
            yield list(range(first, first + size))


def _turned(picture: Picture, turns: int, mirrored: bool) -> Picture:
    picture = np.rot90(picture, turns)
    return picture[:, ::-1] if mirrored else picture


def _as_tensor(picture: Picture) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
