"""The figures of an export as text, and how far it is."""

import math
from collections.abc import Callable, Sequence

from esrgan_deploy._console import aligned
from esrgan_deploy._manifest import Artefact

__all__ = ["each_tenth", "parity_table"]

_HEAD = ("artefact", "on", "max abs", "PSNR dB", "SSIM", "=0 %", "=1 %", ">1 %", "shift", "worst tile", "")


def each_tenth(say: Callable[[str], None]) -> Callable[[int, int, str], None]:
    """Return what says a line where as many steps of all have reached another tenth than before."""
    shown = -1

    def progress(done: int, total: int, line: str) -> None:
        nonlocal shown
        tenth = done * 10 // max(total, 1)
        if tenth != shown:
            shown = tenth
            say(line)

    return progress


def parity_table(artefacts: Sequence[Artefact]) -> str:
    """Return a table of every comparison, one row each, and below it what was really computed.

    ``=0``, ``=1`` and ``>1`` are shares of 8-bit samples that many levels apart; ``shift`` is the largest mean
    signed error of a channel in levels; ``worst tile`` is the lowest PSNR of a 64×64 tile in dB.
    """
    rows: list[tuple[str, ...]] = [_HEAD]
    arithmetic: dict[str, list[str]] = {}
    for artefact in artefacts:
        for figures in artefact.parity:
            rows.append(_row(artefact, figures))
            where = arithmetic.setdefault(figures["arithmetic"], [])
            if artefact.file not in where:
                where.append(artefact.file)
    lines = aligned(rows)
    lines.append(
        "on: noise, drawn pictures (golden), your --images, dynamic shapes, strips (the parts against their graph); "
        "=0 =1 >1: share of 8-bit samples "
        "that many levels off; shift: of a colour, in levels"
    )
    lines += [f"{', '.join(files)}: measured as {how}" for how, files in arithmetic.items()]
    return "\n".join(lines)


def _row(artefact: Artefact, figures: dict[str, object]) -> tuple[str, ...]:
    worst = figures["worst_tile"]
    assert isinstance(worst, dict)
    bias = figures["bias"]
    assert isinstance(bias, (list, tuple))
    breaches = figures.get("breaches")
    return (
        artefact.file,
        str(figures["on"]).split(" ")[0],
        _number(figures["max_abs"], "{:.1e}"),
        _number(figures["psnr"], "{:.1f}"),
        "-" if figures["ssim"] is None else _number(figures["ssim"], "{:.5f}"),
        *(_number(100 * float(figures[key]), "{:.3f}") for key in ("off_by_0", "off_by_1", "off_by_more")),  # type: ignore[arg-type]
        _number(max(bias, key=abs, default=0.0), "{:+.4f}"),
        _number(worst["psnr"], "{:.1f}"),
        "BREACH" if breaches else "ok",
    )


def _number(value: object, form: str) -> str:
    number = float(value)  # type: ignore[arg-type]
    return "equal" if math.isinf(number) else form.format(number)
