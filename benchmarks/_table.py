"""The figures of a benchmark as text."""

from collections.abc import Sequence

from esrgan_deploy.benchmarks._bench import Row

__all__ = ["table"]


def table(rows: Sequence[Row]) -> str:
    """Return a table of speeds, each with the parity of the same artefact beside it."""
    head = [
        "artefact",
        "median ms",
        "p95 ms",
        "pictures/s",
        "LR MP/s",
        "TFLOP/s",
        "peak MiB",
        "parity to PyTorch",
    ]
    body = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in body) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in body
    ]
    n, h, w = rows[0].shape
    lines.append(
        f"batch {n}x{h}x{w}; " + "; ".join(dict.fromkeys(f"{row.file} on {row.provider}" for row in rows))
    )
    lines += [
        f"{row.file}: unstable, the middle half of the times spans {row.timing.spread:.0%} of the median"
        for row in rows
        if row.timing.spread > 0.1
    ]
    if len(rows) > 1:
        first = rows[0]
        for row in rows[1:]:
            ratios = sorted(a / b for a, b in zip(first.timing.values, row.timing.values, strict=True))
            lines.append(
                f"{row.file} is {first.timing.median / row.timing.median:.2f} times as fast as {first.file} "
                f"(turn by turn {ratios[len(ratios) // 4]:.2f} to {ratios[-1 - len(ratios) // 4]:.2f})"
            )
    for row in rows:
        if row.quality is not None:
            q = row.quality
            lines.append(
                f"{row.file}: Y {q.psnr_y:.4f} dB / {q.ssim_y:.4f}, RGB {q.psnr_rgb:.4f} dB / {q.ssim_rgb:.4f} "
                f"over {q.pictures} pictures, border {q.crop}; {q.arithmetic}"
            )
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    return [
        row.file,
        f"{row.timing.median * 1e3:.2f}",
        f"{row.timing.percentile(0.95) * 1e3:.2f}",
        f"{row.pictures_per_second:.3f}",
        f"{row.megapixels_per_second:.4f}",
        "-" if row.teraflops is None else f"{row.teraflops:.4f}",
        f"{row.memory / 2**20:.0f}",
        _parity(row),
    ]


def _parity(row: Row) -> str:
    if not row.parity:
        return row.proof
    # The least of the comparisons: a good one on another set excuses nothing.
    worst = min(row.parity, key=lambda figures: float(figures["psnr"]))
    psnr = float(worst["psnr"])
    level = "equal" if psnr == float("inf") else f"{psnr:.1f} dB"
    return f"{row.proof}, at least {level} ({worst['on'].split(' ')[0]})"
