"""What is timed: batches through a session's slots, or one picture through the Upscaler."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import OptionError
from esrgan_deploy._errors import InferenceError, MissingDependencyError
from esrgan_deploy.benchmarks._options import MOST, BenchOptions, Point
from esrgan_deploy.benchmarks.measure._device import device_sampler
from esrgan_deploy.benchmarks.measure._timing import Sampler
from esrgan_deploy.runtime import Session, SessionInfo, SessionOptions, Slot, Upscaler
from esrgan_deploy.runtime.tiling import cutter_for

__all__ = ["Subject", "check_point", "noise", "open_subject", "session_options"]

Array = npt.NDArray[Any]

# A burst is long enough for the clock and the queue, and no longer.
BURST_SECONDS = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """One artefact at one point of the sweep, ready to be timed.

    Attributes:
        samplers: By the name of the timing (see `_schema.py`); each gives seconds per batch.
        notes: By the name of a timing that cannot be taken here: why not.
        streams: Batches in flight for the throughput.
        output: The picture that it makes of the common noise: ``(N, C, H·s, W·s)`` float32, clipped to 0..1, or as
            it came where a sample is not finite.
        close: Releases what the subject holds; the session is not its own.
    """

    samplers: dict[str, Sampler]
    notes: dict[str, str]
    streams: int
    output: Callable[[], npt.NDArray[np.float32]]
    close: Callable[[], None]


def open_subject(session: Session, path: Path, point: Point) -> Subject:
    """Make an artefact ready to be timed at one point.

    Args:
        session: Of the artefact, open.
        path: The artefact.
        point: Shape, streams and tile.

    Raises:
        InferenceError: It does not take that shape.
    """
    if point.tile is not None:
        return _tiles(session, path, point, point.tile)
    return _batches(session, point)


def check_point(session: Session, path: Path, point: Point) -> None:
    """Refuse a point that an artefact cannot be measured at, before any point is measured.

    Raises:
        InferenceError: It does not take that shape, or tiles of that size.
        OptionError: The tile leaves nothing between the halos that were measured for the artefact.
    """
    if math.prod(point.shape) > MOST:
        raise OptionError(f"{'x'.join(map(str, point.shape))} is more than the {MOST} pixels of a batch")
    if point.tile is None:
        _check_multiple(session.info, point.shape)
    else:
        _halo(session, path, point, point.tile)


def session_options(options: BenchOptions) -> SessionOptions:
    """Return how the artefacts are opened."""
    return SessionOptions(
        device=options.device,
        providers=options.providers,
        threads=options.threads,
        streams=options.streams,
        precision=options.precision,
        trust=options.trust,
        # Several take turns, and the idle threads of one would take the processor from the next for a second.
        spin=False,
    )


def noise(info: SessionInfo, shape: tuple[int, int, int]) -> Array:
    """Return the batch that every artefact is measured on, in a session's own form.

    Uniform noise, the same 8-bit samples whatever the form: ``(N, H, W, C)`` uint8, or that over 255 as
    ``(N, C, H, W)``.
    """
    samples = np.random.default_rng(0).integers(0, 256, (*shape, info.in_channels), np.uint8)
    if info.form == "uint8":
        return samples
    planar = np.ascontiguousarray(samples.transpose(0, 3, 1, 2))
    return (planar / np.float32(255)).astype(info.dtype)


def _batches(session: Session, point: Point) -> Subject:
    info, shape = session.info, point.shape
    _check_multiple(info, shape)
    batch = noise(info, shape)
    streams = point.streams or (info.slots if info.device >= 0 else 1)
    with contextlib.ExitStack() as opened:
        slots: list[Slot] = []
        for _ in range(streams):
            slots.append(session.slot())
            opened.callback(slots[-1].close)
        on_device, notes = _device_time(session, batch, opened)
        close = opened.pop_all().close

    def begin(slot: Slot) -> None:
        np.copyto(slot.prepare(shape), batch)
        slot.start()

    def latency() -> float:
        start = time.perf_counter()
        begin(slots[0])
        slots[0].finish()
        return time.perf_counter() - start

    def output() -> npt.NDArray[np.float32]:
        begin(slots[0])
        return _picture(slots[0].finish().batch, info)

    samplers: dict[str, Sampler] = {"latency": latency}
    if streams > 1:
        samplers["throughput"] = _burst(slots, begin, latency)
    elif info.device < 0:
        notes["throughput"] = (
            "a processor computes one batch at a time: its throughput is one over the latency"
        )
    else:
        notes["throughput"] = "one batch in flight: its throughput is one over the latency"
    samplers |= on_device
    return Subject(samplers=samplers, notes=notes, streams=streams, output=output, close=close)


def _device_time(
    session: Session, batch: Array, opened: contextlib.ExitStack
) -> tuple[dict[str, Sampler], dict[str, str]]:
    if session.info.device < 0:
        notes = {"device": "the processor is the device: no upload, no download, one time"}
        if session.info.provider.startswith("ONNX Runtime"):
            notes["threads"] = (
                "ONNX Runtime's do not spin between batches, so that they leave the others alone"
            )
        return {}, notes
    try:
        sampler, release = device_sampler(session, batch)
    except (InferenceError, MissingDependencyError) as error:
        # Without cuda-bindings ONNX Runtime computes on a GPU all the same; the host's clock is left.
        return {}, {"device": f"not measured: {error}"}
    opened.callback(release)
    return {"device": sampler}, {}


def _burst(slots: list[Slot], begin: Callable[[Slot], None], latency: Sampler) -> Sampler:
    # From the end of one batch to the end of another while every slot is busy: neither filling the queue nor
    # draining it is in it.
    length = 0

    def once() -> float:
        nonlocal length
        length = length or max(2 * len(slots), min(64, math.ceil(BURST_SECONDS / latency())))
        queue = collections.deque(slots)
        for slot in slots:
            begin(slot)
        queue[0].finish()
        start = time.perf_counter()
        for _ in range(length):
            begin(queue[0])
            queue.rotate(-1)
            queue[0].finish()
        taken = time.perf_counter() - start
        for _ in range(len(slots) - 1):
            queue.rotate(-1)
            queue[0].finish()
        return taken / length

    return once


def _tiles(session: Session, path: Path, point: Point, tile: int) -> Subject:
    height, width = point.shape[1:]
    halo = _halo(session, path, point, tile)
    upscaler = Upscaler(session, tile=tile, halo=halo, streams=point.streams)
    samples = np.random.default_rng(0).integers(0, 256, (height, width, session.info.in_channels), np.uint8)

    def latency() -> float:
        start = time.perf_counter()
        upscaler.upscale(samples)
        return time.perf_counter() - start

    def output() -> npt.NDArray[np.float32]:
        made = upscaler.upscale(samples).astype(np.float32) / np.float32(255)
        return np.ascontiguousarray(made.transpose(2, 0, 1))[None]

    why = "a picture cut into tiles is timed as a whole, files left out"
    return Subject(
        samplers={"latency": latency},
        notes={"throughput": why, "device": why},
        streams=point.streams or session.info.slots,
        output=output,
        close=upscaler.close,
    )


def _halo(session: Session, path: Path, point: Point, tile: int) -> int:
    # The halo that a pipeline would get, which was measured for this file; the session is the one that is open.
    if point.shape[0] != 1:
        raise OptionError(
            f"a sweep over tiles cuts one picture, not a batch of {point.shape[0]}; use a shape of 1xHxW"
        )
    try:
        return cutter_for(session.info, path, tile=tile, halo=None).plan(*point.shape[1:]).halo
    except ValueError as error:
        raise OptionError(f"--sweep tile={tile}: {error}") from error


def _check_multiple(info: SessionInfo, shape: tuple[int, int, int]) -> None:
    multiple = info.size_multiple
    if shape[1] % multiple or shape[2] % multiple:
        raise InferenceError(
            f"{info.name} needs height and width to be multiples of {multiple}, not {shape[1]}x{shape[2]}"
        )
    pairs = zip(info.min_shape, shape, info.max_shape, strict=True)
    if not all(least <= side <= most for least, side, most in pairs):
        least, given, most = ("x".join(map(str, s)) for s in (info.min_shape, shape, info.max_shape))
        raise InferenceError(f"{info.name} takes batches of {least} to {most}, not {given}; use --shape")


def _picture(made: Array, info: SessionInfo) -> npt.NDArray[np.float32]:
    if info.form == "uint8":
        return np.ascontiguousarray(made.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    wide = made.astype(np.float32)
    return wide.clip(0, 1) if np.isfinite(wide).all() else wide
