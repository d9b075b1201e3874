"""The figures of a benchmark as text."""

from collections.abc import Callable, Sequence
from typing import Any

from esrgan_deploy._console import aligned
from esrgan_deploy.benchmarks.measure import UNSTABLE
from esrgan_deploy.benchmarks.record import Results, Row, point_in_words

__all__ = ["describe_parity", "describe_qualities", "table"]

# Head of a column and what stands in it; a column that is empty in every row is left out.
_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("artefact", lambda row: row.name),
    ("device p50 ms", lambda row: _milliseconds(row, "device", 0.5)),
    ("p50 ms", lambda row: _milliseconds(row, "latency", 0.5)),
    ("p95 ms", lambda row: _milliseconds(row, "latency", 0.95)),
    ("p99 ms", lambda row: _milliseconds(row, "latency", 0.99)),
    ("in flight", lambda row: f"x{row.streams}" if "throughput" in row.timings else ""),
    ("p50 ms each", lambda row: _milliseconds(row, "throughput", 0.5)),
    ("n", lambda row: str(len(row.timings["latency"].values))),
    ("pictures/s", lambda row: f"{row.figures(row.best)['pictures_per_second']:.3f}"),
    ("LR MP/s", lambda row: f"{row.figures(row.best)['megapixels_per_second']:.4f}"),
    ("TFLOP/s", lambda row: _optional(row.figures(row.best)["teraflops"], ".4f")),
    ("of peak", lambda row: _optional(row.figures(row.best)["compute_share"], ".0%")),
    ("device TFLOP/s", lambda row: _of_device(row, "teraflops", ".4f")),
    ("device of peak", lambda row: _of_device(row, "compute_share", ".0%")),
    ("GB/s declared", lambda row: _gigabytes(row)),
    ("of copy", lambda row: _optional(row.figures(_closest(row))["bandwidth_share"], ".0%")),
    ("peak MiB", lambda row: _memory(row, "host")),
    ("GPU MiB", lambda row: _memory(row, "device")),
    ("build s", lambda row: _optional(row.build_seconds, ".1f")),
    ("parity to PyTorch", lambda row: describe_parity(row)),
)


def table(results: Results) -> str:
    """Return a table of speeds, each with the parity of the same artefact beside it."""
    rows = results.rows
    if not rows:
        return "nothing was measured"
    several = len({row.point for row in rows if row.kind == "artefact"}) > 1
    columns = [("at", lambda row: point_in_words(row)), *_COLUMNS] if several else list(_COLUMNS)
    cells = [[cell(row) for _, cell in columns] for row in rows]
    shown = [i for i in range(len(columns)) if any(line[i] for line in cells)]
    body = [[columns[i][0] for i in shown], *([line[i] or "-" for i in shown] for line in cells)]
    lines = aligned(body)
    if not several:
        lines.append(point_in_words(rows[0]))
    lines += _runners(rows)
    lines += _notes(rows)
    lines += _roofs(results.peaks)
    lines += _state(results)
    lines += [f"warning: {warning}" for warning in results.warnings]
    lines += _unstable(rows, several)
    lines += [_ratio(ratio, several) for ratio in results.ratios]
    lines += _differences(rows, several)
    lines += describe_qualities(rows)
    return "\n".join(lines)


def describe_parity(row: Row) -> str:
    """Return the proof of a row in a few words; the least of its comparisons, for a good one excuses no other."""
    if row.kind == "peer" and row.difference is not None:
        return f"{row.proof}: at most {row.difference * 255:.3g} levels off"
    if not row.parity:
        return row.proof
    worst = min(row.parity, key=lambda figures: float(figures["psnr"]))
    psnr = float(worst["psnr"])
    level = "equal" if psnr == float("inf") else f"{psnr:.1f} dB"
    return f"{row.proof}, at least {level} ({worst['on'].split(' ')[0]})"


def _runners(rows: Sequence[Row]) -> list[str]:
    names: dict[str, list[str]] = {}
    for row in rows:
        threads = "" if row.threads is None else f", {row.threads} threads"
        names.setdefault(f"{row.provider}{threads}", []).append(row.name)
    return [f"{', '.join(dict.fromkeys(of))}: {provider}" for provider, of in names.items()]


def _notes(rows: Sequence[Row]) -> list[str]:
    # The same reason for several rows is one line.
    return list(dict.fromkeys(f"{timing}: {why}" for row in rows for timing, why in row.notes.items()))


def _roofs(peaks: dict[str, Any] | None) -> list[str]:
    if peaks is None:
        return []
    lines = [
        f"peak {precision}: {found['flops'] / 1e12:.4f} TFLOP/s ({found['how']})"
        for precision, found in peaks["compute"].items()
    ]
    if peaks["copy"]:
        lines.append(
            f"peak copy: {peaks['copy']['bytes_per_second'] / 1e9:.1f} GB/s ({peaks['copy']['how']})"
        )
    return lines + [f"peak {what}: {why}" for what, why in peaks["missing"].items()]


def _state(results: Results) -> list[str]:
    machine, lines = results.environment, []
    gpus = [(gpu.get("name"), gpu.get("pci_bus_id")) for gpu in machine.get("gpus") or []]
    cards = ", ".join(f"{name} ({bus})" if bus else str(name) for name, bus in gpus) or "no NVIDIA GPU"
    lines.append(
        f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('memory_gib')} GiB; {cards}"
    )
    for when in ("before", "during", "after"):
        state = results.state.get(when)
        if state:
            lines.append(f"{when}: {_one_state(state)}")
    return lines


def _one_state(state: dict[str, Any]) -> str:
    parts = []
    if state.get("load"):
        parts.append(f"load {state['load'][0]:.2f}")
    if state.get("cpu_mhz"):
        parts.append(f"{min(state['cpu_mhz']):.0f} to {max(state['cpu_mhz']):.0f} MHz")
    parts += [
        f"GPU {gpu.get('clock_mhz')} MHz, {gpu.get('power_w')} W, {gpu.get('temperature_c')} °C, "
        f"throttled by {gpu.get('throttled_by')}"
        for gpu in state.get("gpus") or []
    ]
    return ", ".join(parts) or "nothing here tells clocks or load"


def _unstable(rows: Sequence[Row], several: bool) -> list[str]:
    return [
        f"{_at(row, several)}: unstable, the middle half of the times ({name}) spans {taken.spread:.0%} of the median"
        for row in rows
        for name, taken in row.timings.items()
        if taken.spread > UNSTABLE
    ]


def _ratio(ratio: dict[str, Any], several: bool) -> str:
    n, h, w = ratio["shape"]
    tile = "" if ratio["tile"] is None else f", tile {ratio['tile'] or 'none'}"
    where = f" at {n}x{h}x{w}{tile}, {ratio['streams']} in flight" if several else ""
    return (
        f"{ratio['name']}{where} is {ratio['median']:.2f} times as fast as {ratio['to']} ({ratio['timing']}; "
        f"turn by turn {ratio['low']:.2f} to {ratio['high']:.2f})"
    )


def _differences(rows: Sequence[Row], several: bool) -> list[str]:
    artefacts = [row for row in rows if row.kind == "artefact"]
    return [
        f"{_at(row, several)} is at most {row.difference * 255:.3g} levels from {artefacts[0].name} on the noise "
        "that was timed"
        for row in artefacts
        if row.name != artefacts[0].name and row.difference is not None
    ]


def describe_qualities(rows: Sequence[Row]) -> list[str]:
    """Return a line for each artefact that was held against the truth."""
    measured = {row.name: row.quality for row in rows if row.quality is not None}
    return [
        f"{name}: Y {q['psnr_y']:.4f} dB / {q['ssim_y']:.4f}, RGB {q['psnr_rgb']:.4f} dB / {q['ssim_rgb']:.4f} "
        f"over {q['pictures']} pictures, border {q['crop']}; {q['arithmetic']}"
        for name, q in measured.items()
    ]


def _at(row: Row, several: bool) -> str:
    return f"{row.name} at {point_in_words(row)}" if several else row.name


def _closest(row: Row) -> str:
    # Memory traffic is the device's own, where it was timed.
    return "device" if "device" in row.timings else row.best


def _milliseconds(row: Row, timing: str, share: float) -> str:
    taken = row.timings.get(timing)
    return "" if taken is None else f"{taken.percentile(share) * 1e3:.2f}"


def _of_device(row: Row, figure: str, form: str) -> str:
    return _optional(row.figures("device")[figure], form) if "device" in row.timings else ""


def _gigabytes(row: Row) -> str:
    moved = row.figures(_closest(row))["bytes_per_second"]
    return "" if moved is None else f"{moved / 1e9:.1f}"


def _memory(row: Row, which: str) -> str:
    size = (row.memory or {}).get(which)
    return "" if size is None else f"{size / 2**20:.0f}"


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
