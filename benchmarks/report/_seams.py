"""Seams against the halo, for `esrgan-bench --seams`: measured, chosen from, kept and printed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.benchmarks._options import BenchOptions
from esrgan_deploy.benchmarks.measure import session_options
from esrgan_deploy.runtime import Session, Upscaler, open_session
from esrgan_deploy.runtime.device import device_memory, processor_memory
from esrgan_deploy.runtime.tiling import (
    EDGES,
    HALOS,
    SEAM_LEVELS,
    NotMeasurableError,
    SeamCurve,
    TileChoice,
    choose_tiling,
    drawn_picture,
    measure_seams,
    store_tiling,
)

__all__ = ["run_seams", "seams_table"]

# Against the black that convolutions pad with, a saturated colour shows the widest rim, and grey one of its own.
FLAT = ((0.5, 0.5, 0.5), (1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1))
SIDE = 64

# Rows at a time, low enough that the drawn pictures have several.
STRIP = 64


def run_seams(path: Path, options: BenchOptions) -> dict[str, Any]:
    """Measure an artefact's seams on drawn pictures, choose its tiling, and keep both in the manifest beside it.

    Args:
        path: The artefact.
        options: How it is opened.

    Returns:
        What JSON carries: ``file``; ``curve`` (`SeamCurve`), ``choice`` (`TileChoice`), ``memory`` (`MemoryFacts`),
        ``rim`` (by the edge, ``"repeat"`` at the chosen halo: how many levels of 255 the outermost samples of one
        colour are off at most), ``strips`` (how far strips through its parts are from the untiled output:
        ``largest``, in levels before rounding, and ``samples``, the share that differs in 8 bits; None without parts)
        and ``kept`` (the manifest's name, or why it is kept nowhere); or ``file`` and
        ``skipped``, the reason.

    Raises:
        InferenceError: The artefact cannot be run here.
    """
    session = open_session(path, session_options(options))
    try:
        # With parts no tile is made, and how wide a halo would do is of no use.
        curve = measure_seams(session, halos=None if session.info.parts is None else HALOS)
        strips = None if session.info.parts is None else _in_strips(session)
        device = session.info.device
        memory = device_memory(device) if device >= 0 else processor_memory()
        choice = choose_tiling(session.info, memory=memory, curve=curve)
        rim = _rim(session, choice.halo)
    except NotMeasurableError as error:
        return {"file": path.name, "skipped": str(error)}
    finally:
        session.close()
    return {
        "file": path.name,
        "curve": curve.to_json(),
        "choice": dataclasses.asdict(choice),
        "memory": dataclasses.asdict(memory),
        "rim": rim,
        "strips": strips,
        "kept": _keep(path, curve, choice),
    }


def seams_table(seams: dict[str, Any]) -> str:
    """Return what `run_seams` returned as text."""
    if "skipped" in seams:
        return f"seams of {seams['file']}: not measured, {seams['skipped']}"
    curve, choice = SeamCurve.from_json(seams["curve"]), TileChoice(**seams["choice"])
    lines = [
        f"seams of {seams['file']}: tiles of {curve.tile} against the untiled output, {curve.positions} places, "
        f"pictures: {', '.join(curve.pictures)}",
        "halo  largest (levels of 255)  99.99 %",
    ]
    for halo, largest, percentile in zip(curve.halos, curve.largest, curve.percentile, strict=True):
        mark = "  <- under half a level from here on" if halo == curve.halo_for(SEAM_LEVELS) else ""
        lines.append(f"{halo:4}  {largest:23.4f}  {percentile:7.4f}{mark}")
    if curve.rounded:
        lines.append(
            "this form rounds to 8 bits: the float form of the same net shows what lies under a level"
        )
    if "rim" in seams:
        lines.append(
            f"edge: one colour is off by up to {seams['rim']['repeat']:.4f} levels with its edge repeated by the "
            f"halo of {choice.halo}, by {seams['rim']['zero']:.1f} with zeros"
        )
    strips = seams.get("strips")
    if strips is not None:
        lines.append(
            f"in strips through its parts, as large pictures go: {strips['largest']:.4f} levels at most, "
            f"{strips['samples']:.4%} of the 8-bit samples differ"
        )
    lines.append(f"{'with --strip 0' if strips else 'chosen'}: {choice.reason}")
    if choice.warning:
        lines.append(f"warning: {choice.warning}")
    lines.append(f"kept in the manifest: {seams['kept']}")
    return "\n".join(lines)


def _in_strips(session: Session) -> dict[str, float]:
    largest, different, samples = 0.0, 0, 0
    with Upscaler(session, tile=0) as whole, Upscaler(session, strip=STRIP) as strips:
        for seed in range(2):
            picture = drawn_picture(seed).astype(np.float32) / 255
            expected, made = whole.upscale(picture), strips.upscale(picture)
            largest = max(largest, float(np.abs(expected - made).max()) * 255)
            different += int((np.rint(expected * 255) != np.rint(made * 255)).sum())
            samples += expected.size
    return {"largest": largest, "samples": different / samples}


def _rim(session: Session, halo: int) -> dict[str, float]:
    side = min(SIDE, *session.info.max_shape[1:])
    found: dict[str, float] = {}
    for edge in EDGES:
        with Upscaler(session, halo=halo, edge=edge) as upscaler:
            off = []
            for colour in FLAT:
                made = upscaler.upscale(np.full((side, side, 3), colour, np.float32))
                off.append(np.abs(made - made[made.shape[0] // 2, made.shape[1] // 2]).max())
        found[edge] = float(max(off)) * 255
    return found


def _keep(path: Path, curve: SeamCurve, choice: TileChoice) -> str:
    try:
        return store_tiling(path, curve, choice).name
    except (InferenceError, OSError) as error:
        return f"no, {error}"
