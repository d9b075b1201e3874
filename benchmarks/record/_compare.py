"""Earlier results held against new ones: what became slower, beyond the noise."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy.benchmarks.measure import UNSTABLE, Timing, same_machine
from esrgan_deploy.benchmarks.record._schema import Results, Row, point_in_words

__all__ = ["Change", "check_machine", "compare", "describe_changes"]

# A change of the machine's own peak that is worth a line.
WITNESS = 0.05

# What is no part of a name: "ONNX Runtime 1.32.0, CPU" and "… 1.33.0, CPU" may be compared, and so may two cards of
# one kind, wherever in the machine they are.
_INCIDENTAL = re.compile(r"\s\d+(\.\d+)+[\w.+-]*|cuda:\d+|, [0-9A-Fa-f:]+\.\d(?=\))")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One timing of one row, then and now.

    Attributes:
        row: The new row.
        timing: ``"latency"``, ``"throughput"`` or ``"device"``.
        old: Then.
        new: Now.
        threshold: How much slower is a failure, as a share.
    """

    row: Row
    timing: str
    old: Timing
    new: Timing
    threshold: float

    @property
    def share(self) -> float:
        """By how much the median grew: 0.1 is a tenth slower, -0.1 a tenth faster."""
        return self.new.median / self.old.median - 1

    @property
    def beyond_noise(self) -> bool:
        """Whether the middle halves of the two lie apart."""
        return self.new.percentile(0.25) > self.old.percentile(0.75) or self.new.percentile(
            0.75
        ) < self.old.percentile(0.25)

    @property
    def verdict(self) -> str:
        """``"slower"`` (a failure), ``"slower within the noise"``, ``"faster"`` or ``"the same"``."""
        if abs(self.share) <= self.threshold:
            return "the same"
        if self.share > 0:
            return "slower" if self.beyond_noise else "slower within the noise"
        return "faster" if self.beyond_noise else "the same"

    @property
    def failed(self) -> bool:
        """Whether an artefact became slower past the threshold; a peer is the machine's witness and fails nothing."""
        return self.verdict == "slower" and self.row.kind == "artefact"


def compare(old: Results, new: Results, path: Path, threshold: float) -> list[Change]:
    """Pair what both measured.

    Args:
        old: Earlier results.
        new: Results of now.
        path: Where the earlier ones were read, for messages.
        threshold: How much slower is a failure, as a share.

    Raises:
        BenchmarkError: They are of different machines, or nothing in them, or something of one name, can be compared.
    """
    check_machine(old, new.environment, path)
    changes = []
    for row in new.rows:
        earlier = [
            candidate for candidate in old.rows if (candidate.kind, candidate.name) == (row.kind, row.name)
        ]
        if not earlier:
            continue
        if row.kind == "artefact":
            _check_model(earlier[0], row, path)
        match = next((candidate for candidate in earlier if candidate.point == row.point), None)
        if match is None:
            had = ", ".join(dict.fromkeys(point_in_words(candidate) for candidate in earlier))
            raise BenchmarkError(
                f"{path} measured {row.name} at {had}, and now it is {point_in_words(row)}: different shapes are not "
                "compared. Measure with the flags of then, which the file holds under 'command'"
            )
        changes += [
            Change(
                row=row,
                timing=name,
                old=match.timings[name],
                new=row.timings[name],
                threshold=threshold,
            )
            for name in match.timings.keys() & row.timings.keys()
        ]
    if not any(change.row.kind == "artefact" for change in changes):
        names = ", ".join(dict.fromkeys(row.name for row in old.rows if row.kind == "artefact")) or "nothing"
        raise BenchmarkError(
            f"{path} measured {names}; none of that is measured now, so nothing can be compared"
        )
    return sorted(changes, key=lambda change: (not change.failed, change.timing != "latency"))


def check_machine(old: Results, environment: dict[str, object], path: Path) -> None:
    """Refuse results of another machine, before time is spent on measuring.

    Raises:
        BenchmarkError: They are of another one.
    """
    differs = same_machine(old.environment, environment)
    if differs:
        raise BenchmarkError(
            f"{path} is of another machine ({differs}); times of different machines are not compared. "
            "Measure both on one"
        )


def describe_changes(changes: list[Change], old: Results, new: Results, path: Path) -> str:
    """Return one line for each timing that was compared, and what was not compared."""
    lines = [
        f"compared with {path} of {old.created}: medians; beyond the noise where the middle halves lie apart"
    ]
    for change in changes:
        unstable = " (unstable)" if max(change.old.spread, change.new.spread) > UNSTABLE else ""
        lines.append(
            f"{change.row.name}, {point_in_words(change.row)}, {change.timing}: {change.old.median * 1e3:.2f} -> "
            f"{change.new.median * 1e3:.2f} ms, {change.share:+.1%}, spread {change.old.spread:.0%} and "
            f"{change.new.spread:.0%}{unstable}: {_words(change)}"
        )
    lines += _witnesses(old, new)
    lines += _versions(old, new)
    have, had = ({row.name for row in side.rows} for side in (new, old))
    if have - had:
        lines.append(f"not in {path}: {', '.join(sorted(have - had))}")
    if had - have:
        lines.append(f"only in {path}: {', '.join(sorted(had - have))}")
    return "\n".join(lines)


def _words(change: Change) -> str:
    if change.failed:
        return f"SLOWER by more than {change.threshold:.0%}"
    if change.verdict == "slower":
        return "slower, a peer: look whether the machine is"
    return change.verdict


def _witnesses(old: Results, new: Results) -> Iterator[str]:
    # The roof is the best of many: where it moved, the whole machine did, by its clock or by what ran beside.
    then, now = ((side.peaks or {}).get("compute", {}) for side in (old, new))
    for name in then.keys() & now.keys():
        share = now[name]["flops"] / then[name]["flops"] - 1
        if abs(share) > WITNESS:
            yield (
                f"the machine's own peak in {name} changed by {share:+.0%} meanwhile, so it is not only the "
                "artefacts that changed: measure both again with nothing running beside"
            )


def _versions(old: Results, new: Results) -> Iterator[str]:
    then, now = old.environment.get("packages", {}), new.environment.get("packages", {})
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            yield f"{name}: {then.get(name, 'not installed')} then, {now.get(name, 'not installed')} now"


def _check_model(old: Row, new: Row, path: Path) -> None:
    if (old.spec or new.spec) and old.spec != new.spec:
        fields = {*(old.spec or {}), *(new.spec or {})}
        differs = sorted(f for f in fields if (old.spec or {}).get(f) != (new.spec or {}).get(f))
        raise BenchmarkError(
            f"{path} measured another model under the name {new.name} (its {', '.join(differs)} differ); "
            "different models are not compared"
        )
    if old.spec is None and old.sha256 != new.sha256:
        raise BenchmarkError(
            f"{path} measured another {new.name}: its sha256 is {old.sha256[:12]}…, now {new.sha256[:12]}…, and no "
            "specification says that they are one model; different models are not compared"
        )
    for what in ("precision", "form", "threads"):
        then, now = getattr(old, what), getattr(new, what)
        if then != now:
            raise BenchmarkError(
                f"{path} measured {new.name} with {what} {then or 'of its own choice'}, now it is "
                f"{now or 'its own choice'}; that is not compared. Measure with the flags of then"
            )
    if _INCIDENTAL.sub("", old.provider) != _INCIDENTAL.sub("", new.provider):
        raise BenchmarkError(
            f"{path} measured {new.name} on {old.provider}, now it ran on {new.provider}; different providers are "
            "not compared"
        )
