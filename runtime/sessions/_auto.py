"""The fastest on this processor of all that computes a graph as it should: measured once, and kept."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from esrgan_deploy._cache import KeyedFile, cache_folder
from esrgan_deploy._errors import InferenceError, MissingDependencyError, ParityError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._parity import BOUNDS, Pairs, judged, planar
from esrgan_deploy.runtime.device import cuda_device_count
from esrgan_deploy.runtime.sessions._protocol import Session, SessionInfo, SessionOptions

__all__ = ["is_auto", "open_fastest"]

AUTO, OPENVINO, ONNX = "auto", "openvino", "cpu"
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")

# Edge of the picture that is timed, and for how long at most, once each has run twice.
SIDE, SECONDS, ROUNDS = 64, 4.0, 3

# A way that gives less than this away is kept to: the first is the one that is run where nothing is measured.
WORTH = 1.05


def is_auto(providers: Sequence[str] | None) -> bool:
    """Whether providers ask for what is fastest."""
    return providers is not None and tuple(providers) == (AUTO,)


def open_fastest(path: Path, options: SessionOptions) -> Session:
    """Open a graph with what is fastest here: ONNX Runtime, OpenVINO, or OpenVINO in bf16 where the processor has it.

    Each is run on the golden pairs beside the graph first, or where there are none on drawn pictures beside ONNX
    Runtime, and is left out where it breaches the bounds of its precision. What was chosen is kept in the cache
    folder, for this graph, this processor and these versions. On a machine with an NVIDIA GPU nothing is measured.

    Args:
        path: The graph.
        options: `SessionOptions.precision` leaves only what computes in it.

    Raises:
        InferenceError: Nothing here can run the graph.
        MissingDependencyError: Neither ONNX Runtime nor OpenVINO is installed.
    """
    ways = _ways(options)
    if len(ways) == 1:
        return _opened(path, ways[0])
    kept = KeyedFile(cache_folder("fastest"), "fastest", _key(path, ways))
    try:
        found = json.loads(kept.load())
    except ValueError:
        found = _measured(path, ways)
        kept.save(json.dumps(found).encode())
    return _opened(path, ways[found["way"]], note=f" ({found['note']})")


def _ways(options: SessionOptions) -> list[SessionOptions]:
    """Return how a graph can be opened here; what nothing has to be measured for comes first."""
    own = dataclasses.replace(options, providers=None, precision=None)
    if cuda_device_count():
        return [own]
    ways = [dataclasses.replace(own, providers=(ONNX,))] if any(map(_version, ONNXRUNTIMES)) else []
    if _version("openvino"):
        from esrgan_deploy.runtime.sessions.openvino import arithmetic_of

        able = arithmetic_of()
        both: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
        asked = both if options.precision is None else (options.precision,)
        ways += [
            dataclasses.replace(
                own, providers=(OPENVINO,), precision=None if precision == "fp32" else precision
            )
            for precision in asked
            if precision in able or options.precision is not None
        ]
    if options.precision in ("fp16", "bf16"):
        # ONNX Runtime computes a graph in its own.
        ways = [way for way in ways if way.precision == options.precision] or [
            dataclasses.replace(own, providers=(OPENVINO,), precision=options.precision)
        ]
    return ways or [own]


def _opened(path: Path, way: SessionOptions, *, note: str = "") -> Session:
    if way.providers == (OPENVINO,):
        from esrgan_deploy.runtime.sessions.openvino import OpenVinoSession

        return OpenVinoSession(path, way, note=note)
    from esrgan_deploy.runtime.sessions.onnx import OnnxSession

    return OnnxSession(path, way, note=note)


def _measured(path: Path, ways: Sequence[SessionOptions]) -> dict[str, Any]:
    """Return which way is fastest of those that hold, and a phrase of why.

    Raises:
        InferenceError: None opens, or none holds.
    """
    sessions: dict[int, Session] = {}
    out: list[str] = []
    with contextlib.ExitStack() as opened:
        failure: InferenceError | MissingDependencyError | None = None
        for number, way in enumerate(ways):
            try:
                # Threads that spin after their batch would take the cores from whoever is next.
                session = _opened(path, dataclasses.replace(way, spin=False))
                opened.callback(session.close)
                if number == 0 or _holds(session, path, next(iter(sessions.values()), None)):
                    sessions[number] = session
                else:
                    out.append(f"{session.info.provider} does not hold its bounds")
            except (InferenceError, MissingDependencyError) as error:
                failure = failure or error
        if not sessions:
            assert failure is not None
            raise failure
        seconds = _times(list(sessions.values()))
        taken = dict(zip(sessions, seconds, strict=True))
        first = next(iter(taken))
        best = min(taken, key=lambda number: taken[number] * (1.0 if number == first else WORTH))
        others = [
            f"{taken[number] / taken[best]:.2f} times as fast as {session.info.provider}"
            for number, session in sessions.items()
            if number != best
        ]
    return {"way": best, "note": "; ".join(["fastest here", *others, *out])}


def _holds(session: Session, path: Path, first: Session | None) -> bool:
    from esrgan_deploy.runtime.sessions._golden import verify_golden, verify_session

    try:
        verify_golden(session, path)
    except ParityError:
        return False
    except InferenceError:
        # Nothing beside it says what it should compute: what ONNX Runtime makes of it, then.
        if first is None:
            return False
        info = session.info
        comparisons, _ = verify_session(session, {"drawn": _pairs(first)})
        precision = info.computes or info.precision or "fp32"
        return bool(comparisons) and judged(comparisons, precision, info.form)[1]
    return True


def _pairs(first: Session) -> Pairs:
    """Return drawn pictures and what a session makes of them: waves and edges, in all its colours."""
    info = first.info
    number, height, width = _shape(info)
    y, x = np.mgrid[:height, :width]
    found: Pairs = {}
    for name, (down, across) in {"waves": (0.21, 0.34), "edges": (1.1, 0.13)}.items():
        planes = [
            0.5 + 0.5 * np.sin(down * y + across * x * (channel + 1)) for channel in range(info.in_channels)
        ]
        picture = np.stack(planes, axis=-1)
        if name == "edges":
            picture = np.round(picture)
        lr = np.repeat(np.rint(255 * picture).astype(np.uint8)[None], number, axis=0)
        batch = lr if info.form == "uint8" else planar(lr).astype(info.dtype)
        made = first.run(np.ascontiguousarray(batch))
        hr = planar(made) if info.form == "uint8" else made.astype(np.float32)
        found[name] = (lr, hr)
    return found


def _times(sessions: Sequence[Session]) -> list[float]:
    infos = [session.info for session in sessions]
    batches = [np.full(info.batch_shape(*_shape(info)), 0, info.dtype) for info in infos]
    seconds = [float("inf")] * len(sessions)
    begun = time.perf_counter()
    rounds = 0
    # In turns, and of each its best: whatever else runs here slows one as well as another.
    while rounds < ROUNDS or (rounds < 10 * ROUNDS and time.perf_counter() - begun < SECONDS):
        for place, (session, batch) in enumerate(zip(sessions, batches, strict=True)):
            start = time.perf_counter()
            session.run(batch)
            # The first round warms up.
            seconds[place] = min(seconds[place], time.perf_counter() - start) if rounds else float("inf")
        rounds += 1
    return seconds


def _shape(info: SessionInfo) -> tuple[int, int, int]:
    side = -(-SIDE // info.size_multiple) * info.size_multiple
    height, width = (
        min(max(side, least), most)
        for least, most in zip(info.min_shape[1:], info.max_shape[1:], strict=True)
    )
    return info.min_shape[0], height, width


def _key(path: Path, ways: Sequence[SessionOptions]) -> dict[str, Any]:
    from esrgan_deploy.runtime.sessions.openvino import processor_name

    return {
        "graph": sha256_of(path),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": [_version(package) for package in (*ONNXRUNTIMES, "openvino")],
        "ways": [[way.providers, way.precision] for way in ways],
        "options": [ways[0].threads, ways[0].streams],
        "bounds": repr(BOUNDS),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
