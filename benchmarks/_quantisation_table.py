"""The figures of quantised graphs as text and as Markdown."""

from collections.abc import Sequence
from typing import Any

__all__ = ["markdown", "text"]

_HEADS = ("method", "quantised", "loss dB", "SSIM", "PSNR to fp32", "shift", "worst tile", "flicker")

_LEGEND = (
    "loss: mean over pictures of PSNR-Y of fp32 less that of the method, both against the truth; above 0 is worse. "
    "SSIM: change of SSIM-Y against the truth. PSNR to fp32: dB over all 8-bit RGB samples. shift: mean signed "
    "error of the channel that is farthest off, in levels. worst tile: PSNR to fp32 of the worst 64x64 pixels. "
    "flicker: standard deviation of the error over a pan, in levels. quantised: share of the multiply-adds"
)


def text(figures: dict[str, Any]) -> str:
    """Return the figures of `quantisation.compare` as tables for a terminal."""
    lines = [_about(figures)]
    for name in figures["sets"]:
        rows = [_HEADS, *_rows(figures, name)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", _headline(figures, name)]
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells))
    return "\n".join([*lines, "", *_notes(figures), f"{_LEGEND}."])


def markdown(figures: dict[str, Any]) -> str:
    """Return the same as Markdown."""
    lines = [f"{_about(figures)}."]
    for name in figures["sets"]:
        lines += ["", f"**{_headline(figures, name)}**", "", f"| {' | '.join(_HEADS)} |"]
        lines.append("|---|" + "---:|" * (len(_HEADS) - 1))
        lines += [f"| {' | '.join(row)} |" for row in _rows(figures, name)]
    lines += ["", *(f"- {note}" for note in _notes(figures)), "", f"{_LEGEND}.", ""]
    return "\n".join(lines)


def _about(figures: dict[str, Any]) -> str:
    reference = figures["reference"]
    calibration = figures.get("calibration")
    peers = f"; peers calibrated on {calibration}" if calibration else ""
    return f"against {reference['name']} in {reference['arithmetic']}{peers}"


def _headline(figures: dict[str, Any], name: str) -> str:
    one = figures["sets"][name]
    dbs = one["psnr_y"]
    truth = (
        "" if dbs is None else f", fp32 {float(dbs):.3f} dB PSNR-Y, SSIM-Y {_signed(one['ssim_y'], 4, '')}"
    )
    return f"{name}: {one['pictures']} pictures{truth}"


def _rows(figures: dict[str, Any], name: str) -> Sequence[tuple[str, ...]]:
    rows = []
    for method in figures["methods"]:
        found = method.get("sets", {}).get(name)
        if found is None:
            rows.append((method["name"], *("–",) * (len(_HEADS) - 1)))
            continue
        to = found["to_reference"]
        rows.append(
            (
                method["name"],
                f"{method['share']['macs']:.1%}",
                _signed(found["loss"], 3),
                _signed(found["ssim_change"], 4),
                f"{float(to['psnr']):.2f}",
                _signed(max(to["bias"], key=abs), 3),
                f"{float(to['worst_tile']['psnr']):.1f}",
                "–" if found["flicker"] is None else f"{found['flicker']:.3f}",
            )
        )
    return rows


def _notes(figures: dict[str, Any]) -> list[str]:
    notes = []
    for method in figures["methods"]:
        if method.get("left_out"):
            notes.append(f"{method['name']}: left out, {method['left_out']}")
            continue
        share = method["share"]
        kinds = " and ".join(f"{number} with {kind} inputs" for kind, number in share["formats"].items())
        which = f"{share['quantised']} of {share['convolutions']} convolutions quantised"
        rest = f" ({kinds}), all but {_summary(share['left'])}" if share["left"] else f" ({kinds})"
        notes.append(f"{method['name']}: {which}{rest if share['quantised'] else ''}; {method['arithmetic']}")
    return notes


def _summary(names: Sequence[str]) -> str:
    # Of a deep net hundreds of names are left: the first part of a name is enough.
    heads = [name.partition(".")[0] for name in names]
    counted = {head: heads.count(head) for head in heads}
    return ", ".join(f"{number} in {head}" if number > 1 else head for head, number in counted.items())


def _signed(value: Any, digits: int, sign: str = "+") -> str:
    return "–" if value is None else f"{float(value):{sign}.{digits}f}"
