"""What follows from what was measured: ratios, differences, shares of the machine's peak, warnings."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy.benchmarks.measure import paired_ratio
from esrgan_deploy.benchmarks.record._schema import Row
from esrgan_deploy.runtime import SessionInfo

__all__ = ["difference_of", "ratios_of", "roof_of", "under_roof", "warnings_of"]


def ratios_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return how many times as fast as the first row each other one is, by pairs of the same round.

    Args:
        rows: What was measured in turns: of one point of a sweep.
    """
    made = []
    first = rows[0]
    for row in rows[1:]:
        for name in sorted(row.timings.keys() & first.timings.keys()):
            low, median, high = paired_ratio(first.timings[name].values, row.timings[name].values)
            made.append(
                {
                    "name": row.name,
                    "to": first.name,
                    "timing": name,
                    "shape": row.shape,
                    "streams": row.streams,
                    "tile": row.tile,
                    "low": low,
                    "median": median,
                    "high": high,
                }
            )
    return made


def difference_of(made: npt.NDArray[np.float32], first: npt.NDArray[np.float32]) -> float | None:
    """Return the largest difference of two pictures in 0..1; 1 for what is not finite, None where sizes differ."""
    if made.shape != first.shape:
        return None
    difference = float(np.abs(made - first).max())
    # A NaN is as far off as a picture can be.
    return difference if np.isfinite(made).all() and np.isfinite(difference) else 1.0


def roof_of(info: SessionInfo, precision: str) -> str | None:
    """Return the kind of matrix product that an artefact is held against; None where none is its like."""
    if info.device >= 0:
        return precision or None
    # ONNX Runtime computes fp16 in fp32 on a processor.
    if info.provider.startswith("ONNX Runtime") and precision in ("fp32", "fp16"):
        return "fp32"
    return "fp32" if precision == "fp32" else None


def under_roof(row: Row, info: SessionInfo | None, peaks: dict[str, Any] | None) -> Row:
    """Return a row with what the machine itself reached, as far as that was measured."""
    if peaks is None or info is None:
        return row
    found = peaks["compute"].get(roof_of(info, row.precision))
    copy = peaks["copy"]
    return dataclasses.replace(
        row,
        peak_flops=found["flops"] if found else None,
        peak_bytes=copy["bytes_per_second"] if copy else None,
    )


def warnings_of(rows: Sequence[Row], state: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    """Return what has to be known before the figures are believed, one sentence each."""
    found = []
    load, cores = (state["before"]["load"] or [0.0])[0], environment["usable_cores"] or 1
    if load > cores / 2:
        found.append(
            f"the load was {load:.1f} on {cores} cores before anything was measured: other work ran beside"
        )
    found += [
        f"{row.name} made a sample that is as far off as it can be, or no finite one"
        for row in rows
        if row.difference == 1.0
    ]
    found += [
        f"{row.name} is above the peak that was measured: the matrix product was disturbed, or the convolutions "
        "multiply less than is counted (Winograd)"
        for row in rows
        for name in row.timings
        if (row.figures(name)["compute_share"] or 0) > 1
    ]
    return list(dict.fromkeys(found))
