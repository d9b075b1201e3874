"""One run of the benchmark: every artefact and peer in turns, and the proof that stands beside them."""

import contextlib
import dataclasses
import datetime
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._quality import paired_pictures
from esrgan_deploy.benchmarks._options import BenchOptions, Point, points
from esrgan_deploy.benchmarks.measure import (
    Sampler,
    Subject,
    Timing,
    best_of,
    check_point,
    describe_machine,
    machine_state,
    measure_memory,
    measure_peaks,
    measure_quality,
    open_subject,
    sample,
    session_options,
    timed,
)
from esrgan_deploy.benchmarks.record import (
    Known,
    Results,
    Row,
    difference_of,
    known_of,
    ratios_of,
    roof_of,
    under_roof,
    warnings_of,
)
from esrgan_deploy.runtime import Session, open_session

__all__ = ["bench"]

# The clocks of a GPU at rest need about so long to rise.
WARM_SECONDS = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    """One artefact, open."""

    name: str
    path: Path
    sha256: str
    session: Session
    known: Known


def bench(models: Sequence[Path], options: BenchOptions, *, command: str = "") -> Results:
    """Measure artefacts on the same batch, in turns, at every point of the sweep.

    Args:
        models: ``.onnx``, ``.plan`` or checkpoints; ratios are to the first.
        options: What to measure.
        command: What was typed, for the record.

    Raises:
        BenchmarkError: The same artefact is given twice.
        InferenceError: One cannot be run here, or not at that shape.
        OptionError: A point of the sweep is none, whatever is measured there.
        MediaError: The folder of `quality` does not hold pairs.
        MissingDependencyError: A package that runs an artefact or a peer is not installed.
    """
    names = _names(models)
    if options.quality is not None:
        # What cannot work is found out before time is spent on measuring.
        paired_pictures(options.quality)
    seams = _seams(models, names, options)
    state = {"before": machine_state()}
    rows: list[Row] = []
    ratios: list[dict[str, Any]] = []
    with contextlib.ExitStack() as opened:
        entries = [_open(path, name, options, opened) for path, name in zip(models, names, strict=True)]
        wanted = points(options.shape, options.streams, options.sweep)
        for point, entry in itertools.product(wanted, entries):
            check_point(entry.session, entry.path, point)
        roofs = _roofs(entries, options)
        for point in wanted:
            measured = _measure_point(entries, point, options, state)
            ratios += ratios_of(measured)
            rows += measured
        # Again, so that a machine that slowed down meanwhile does not lower its own roof.
        after = _roofs(entries, options)
        peaks = best_of(roofs, after) if roofs and after else None
        infos = {entry.name: entry.session.info for entry in entries}
    state["after"] = machine_state()
    if options.quality is not None:
        quality = {
            name: dataclasses.asdict(measure_quality(path, options.quality, threads=options.threads))
            for name, path in zip(names, models, strict=True)
        }
        rows = [dataclasses.replace(row, quality=quality.get(row.name)) for row in rows]
    rows = [under_roof(row, infos.get(row.name), peaks) for row in rows]
    environment = describe_machine()
    return Results(
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=environment,
        state=state,
        options=dataclasses.asdict(options),
        peaks=peaks,
        rows=tuple(rows),
        ratios=tuple(ratios),
        seams=seams,
        warnings=tuple(warnings_of(rows, state, environment)),
    )


def _open(path: Path, name: str, options: BenchOptions, opened: contextlib.ExitStack) -> _Entry:
    session = open_session(path, session_options(options))
    opened.callback(session.close)
    known = known_of(path, session.info, options.precision)
    return _Entry(name=name, path=path, sha256=sha256_of(path), session=session, known=known)


def _measure_point(
    entries: Sequence[_Entry], point: Point, options: BenchOptions, state: dict[str, Any]
) -> list[Row]:
    with contextlib.ExitStack() as opened:
        subjects = []
        for entry in entries:
            subject = open_subject(entry.session, entry.path, point)
            opened.callback(subject.close)
            subjects.append(subject)
        peers = _peers(entries[0], point, options, opened)
        samplers: dict[tuple[int, str], Sampler] = {
            (i, name): sampler
            for i, subject in enumerate(subjects)
            for name, sampler in subject.samplers.items()
        }
        for i, peer in enumerate(peers, start=len(subjects)):
            samplers[i, "latency"] = timed(peer.run)

        def half_way() -> None:
            state["during"] = machine_state()

        taken = dict(
            zip(
                samplers,
                sample(
                    list(samplers.values()),
                    seconds=options.seconds,
                    warm_seconds=WARM_SECONDS,
                    half_way=half_way,
                ),
                strict=True,
            )
        )
        pictures = [subject.output() for subject in subjects]

        def timings(i: int) -> dict[str, Timing]:
            return {name: timing for (owner, name), timing in taken.items() if owner == i}

        rows = [
            _row(entry, subject, point, options, timings(i), difference_of(pictures[i], pictures[0]))
            for i, (entry, subject) in enumerate(zip(entries, subjects, strict=True))
        ]
        rows += [
            Row(
                name=peer.name,
                kind="peer",
                provider=f"{peer.provider}, version {peer.version}",
                shape=point.shape,
                threads=options.threads,
                timings=timings(i),
                flops_per_pixel=rows[0].flops_per_pixel,
                proof="held against the fp32 graph on the processor",
                difference=peer.difference,
            )
            for i, peer in enumerate(peers, start=len(subjects))
        ]
    # After the buffers of this process are gone, so that both fit side by side.
    memory = {entry.name: measure_memory(entry.path, point, options) for entry in entries}
    return [_with_memory(row, *memory[row.name]) if row.name in memory else row for row in rows]


def _with_memory(row: Row, memory: dict[str, int | None] | None, why: str) -> Row:
    return dataclasses.replace(row, memory=memory, notes={**row.notes, **({"memory": why} if why else {})})


def _row(
    entry: _Entry,
    subject: Subject,
    point: Point,
    options: BenchOptions,
    timings: dict[str, Timing],
    difference: float | None,
) -> Row:
    info, known = entry.session.info, entry.known
    return Row(
        name=entry.name,
        sha256=entry.sha256,
        provider=info.provider,
        precision=known.precision,
        form=info.form,
        spec=info.spec.to_json() if info.spec else None,
        shape=point.shape,
        streams=subject.streams,
        tile=point.tile,
        threads=options.threads,
        timings=timings,
        notes=subject.notes,
        flops_per_pixel=info.spec.flops_per_pixel if info.spec else None,
        bytes_per_pixel=known.bytes_per_pixel,
        build_seconds=known.build_seconds,
        parity=known.parity,
        proof=known.proof,
        difference=difference,
    )


def _peers(first: _Entry, point: Point, options: BenchOptions, opened: contextlib.ExitStack) -> list[Any]:
    if not options.peers:
        return []
    from esrgan_deploy.benchmarks.peers import open_peers

    peers = open_peers(options.peers, first.path, point.shape, threads=options.threads)
    for peer in peers:
        opened.callback(peer.close)
    return list(peers)


def _seams(models: Sequence[Path], names: Sequence[str], options: BenchOptions) -> dict[str, Any]:
    if not options.seams:
        return {}
    # Their measurement takes minutes, and with nothing else open: what cannot be measured later is refused first.
    wanted = points(options.shape, options.streams, options.sweep)
    for path in models:
        with contextlib.closing(open_session(path, session_options(options))) as session:
            for point in wanted:
                check_point(session, path, point)
    from esrgan_deploy.benchmarks.report import run_seams

    return {name: run_seams(path, options) for name, path in zip(names, models, strict=True)}


def _roofs(entries: Sequence[_Entry], options: BenchOptions) -> dict[str, Any] | None:
    if not options.peaks:
        return None
    device = max(entry.session.info.device for entry in entries)
    kinds = [kind for entry in entries if (kind := roof_of(entry.session.info, entry.known.precision))]
    return measure_peaks(device, options.threads, kinds)


def _names(models: Sequence[Path]) -> list[str]:
    # The file's name where that tells them apart, else the path as it was given.
    names = [path.name for path in models]
    names = [str(path) if names.count(path.name) > 1 else path.name for path in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BenchmarkError(f"{twice} is given twice; give each artefact once")
    return names
