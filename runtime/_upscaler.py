"""Pictures in, larger pictures out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime._alpha import bound_alpha, fill_hidden
from esrgan_deploy.runtime._default import default_model
from esrgan_deploy.runtime._samples import peak_of
from esrgan_deploy.runtime._session import Session, SessionInfo, SessionOptions, open_session
from esrgan_deploy.runtime._tile_runner import run_tiles
from esrgan_deploy.runtime._tiling import TileOptions, TilePlan, plan_tiles

__all__ = ["Upscaler"]

Array = npt.NDArray[Any]

# How far above 1 or below 0 a float sample may lie before it is taken for a picture of another range; filters
# overshoot a little, and what they overshoot is clipped.
OVERSHOOT = 0.1


class Upscaler:
    """Enlarges pictures of any size with one model.

    ```python
    with Upscaler("out/model.onnx") as up:
        hr = up.upscale(lr)
    ```

    Args:
        path: An artefact of ``esrgan-export``; None for the model that ships with the package.
        tile: Edge of the tiles in input pixels, 0 for the whole picture at once, ``"auto"`` for tiles of at
            most 256 where the picture is larger than that.
        halo: Input pixels around each tile that are computed and thrown away, so that no seam shows.
        providers: ONNX Runtime execution providers in order of preference, such as ``["cpu"]``; None takes
            CUDA where it is present, and the CPU.
        threads: CPU threads; None lets ONNX Runtime choose.

    Raises:
        InferenceError: The model cannot be run here.
        MissingDependencyError: The package that runs it is not installed.
        ValueError: An option is out of its range.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        tile: int | Literal["auto"] = "auto",
        halo: int = 16,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        self._options = TileOptions(tile=tile, halo=halo)
        model = default_model() if path is None else path
        self._session: Session = open_session(
            model, SessionOptions(providers=None if providers is None else tuple(providers), threads=threads)
        )

    @property
    def info(self) -> SessionInfo:
        """What the model takes and gives, and what computes it."""
        return self._session.info

    def plan(self, height: int, width: int) -> TilePlan:
        """Return how a picture of that size is cut.

        Raises:
            InferenceError: No tile of the asked size can be placed.
        """
        info = self._session.info
        return plan_tiles(
            height,
            width,
            tile=self._options.tile,
            halo=self._options.halo,
            multiple=info.size_multiple,
            scale=info.scale,
            batch=info.min_shape[0],
            least=info.min_shape[1:],
            most=info.max_shape[1:],
        )

    def upscale(self, lr: Array, *, progress: Callable[[int, int], None] | None = None) -> Array:
        """Enlarge one picture.

        Gray goes through an RGB model as three equal channels and comes back as the luma of the result; RGB
        goes through a gray model channel by channel. Alpha is enlarged by the model as a gray picture, within
        the range of the pixels around it, and colours under alpha 0 are replaced by those of the visible
        surroundings first, so that no dark fringe appears. An opaque alpha is not computed.

        Args:
            lr: ``(H, W)``, or ``(H, W, C)`` with C of 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha (not
                premultiplied); uint8, uint16, or float32 in 0..1. A model of the uint8 form computes on 8
                bits, whatever goes in.
            progress: Called with the tiles done and the tiles in all.

        Returns:
            ``(floor(H·s), floor(W·s)[, C])``, of the same dtype, samples rounded half to even.

        Raises:
            InferenceError: The array is not such a picture, the model failed or made NaN, or memory is short.
        """
        _check_picture(lr)
        source = lr[:, :, None] if lr.ndim == 2 else lr
        plan = self.plan(source.shape[0], source.shape[1])
        target = _empty((*plan.out_size, source.shape[2]), lr.dtype)
        alpha = source[:, :, -1] if source.shape[2] in (2, 4) else None
        has_shape = alpha is not None and bool((alpha != peak_of(lr.dtype)).any())
        jobs = self._jobs(source, target, alpha if has_shape else None)
        report = _counter(progress, plan.count * len(jobs))
        for planes, made in jobs:
            run_tiles(self._session, plan, planes, made, done=report)
        if alpha is not None and has_shape:
            bound_alpha(target[:, :, -1], alpha, plan.scale)
        elif alpha is not None:
            target[:, :, -1] = peak_of(lr.dtype)
        return target[:, :, 0] if lr.ndim == 2 else target

    def close(self) -> None:
        """Release the model; a second call does nothing."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _jobs(self, source: Array, target: Array, alpha: Array | None) -> list[tuple[Array, Array]]:
        # What is run one after another: views with as many channels as the model takes, or with one.
        channels = source.shape[2] - (1 - source.shape[2] % 2)
        colour, made = source[:, :, :channels], target[:, :, :channels]
        if alpha is not None:
            colour = fill_hidden(colour, alpha)
        if self.info.in_channels == 1:
            jobs = [(colour[:, :, i : i + 1], made[:, :, i : i + 1]) for i in range(channels)]
        else:
            jobs = [(colour, made)]
        if alpha is not None:
            jobs.append((source[:, :, -1:], target[:, :, -1:]))
        return jobs


def _check_picture(lr: Array) -> None:
    if lr.ndim not in (2, 3) or (lr.ndim == 3 and lr.shape[2] not in (1, 2, 3, 4)) or lr.size == 0:
        raise InferenceError(
            f"an array of shape {lr.shape} is no picture; give (H, W) or (H, W, 1..4) with at least one pixel"
        )
    if lr.dtype not in (np.uint8, np.uint16, np.float32):
        raise InferenceError(
            f"a picture of {lr.dtype} is not taken; give uint8, uint16, or float32 in the range 0..1"
        )
    if lr.dtype == np.float32:
        low, high = float(lr.min()), float(lr.max())
        # Written so that a NaN, which compares as false, is refused.
        if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
            raise InferenceError(
                f"float32 samples run from {low:g} to {high:g}; they must be 0..1 and finite. "
                "Divide by 255 or 65535, or give uint8 or uint16"
            )


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if 0 in shape:
        raise InferenceError(f"the output would be {shape[1]}x{shape[0]} pixels; give a larger picture")
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        size = float(np.prod(shape, dtype=np.float64)) * dtype.itemsize / 2**30
        raise InferenceError(
            f"the output of {shape[1]}x{shape[0]} pixels takes {size:.1f} GiB, which is not to be had; "
            "cut the picture"
        ) from error


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def report(number: int) -> None:
        nonlocal done
        done += number
        progress(done, total)

    return report
