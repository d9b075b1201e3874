"""One measurement of one or more artefacts: speed, memory, and the proof that stands beside them."""

import dataclasses
import json
import os
import platform
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import ExportError, InferenceError
from esrgan_deploy._files import replaced_atomically, sha256_of
from esrgan_deploy._manifest import find_manifest, load_manifest
from esrgan_deploy._quality import Quality
from esrgan_deploy.benchmarks._measure import Timing, measure
from esrgan_deploy.benchmarks._quality import measure_quality
from esrgan_deploy.runtime import SessionOptions, open_session

__all__ = ["BenchOptions", "Row", "bench", "save_results"]

SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure.

    Attributes:
        shape: ``(N, H, W)`` of the batch, in low-resolution pixels.
        seconds: How long to measure all artefacts together, warm-ups not counted.
        threads: Threads of ONNX Runtime on the CPU; None lets it choose.
        providers: ONNX Runtime execution providers; None lets the runtime choose.
        quality: A folder that holds LR and HR, or None.
    """

    shape: tuple[int, int, int] = (1, 256, 256)
    seconds: float = 10.0
    threads: int | None = None
    providers: tuple[str, ...] | None = None
    quality: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The figures of one artefact.

    Attributes:
        file: Its name.
        sha256: Its digest.
        provider: What computed, in words.
        shape: ``(N, H, W)`` of the batch.
        timing: Seconds per batch, host array to host array.
        flops_per_pixel: From the model's specification; None where it is not known.
        memory: Largest resident memory of this process so far, in bytes.
        parity: The comparisons that the manifest holds for exactly this file.
        proof: One phrase: verified, not verified, or why nothing is known.
        quality: Against the truth, where a folder was given.
    """

    file: str
    sha256: str
    provider: str
    shape: tuple[int, int, int]
    timing: Timing
    flops_per_pixel: int | None
    memory: int
    parity: tuple[dict[str, Any], ...]
    proof: str
    quality: Quality | None

    @property
    def pictures_per_second(self) -> float:
        """Pictures of the batch's size per second, by the median."""
        return self.shape[0] / self.timing.median

    @property
    def megapixels_per_second(self) -> float:
        """Low-resolution megapixels per second, by the median."""
        return self.shape[0] * self.shape[1] * self.shape[2] / self.timing.median / 1e6

    @property
    def teraflops(self) -> float | None:
        """TFLOP/s by the median, counted from the specification; None where that is not known."""
        return self.megapixels_per_second * self.flops_per_pixel / 1e6 if self.flops_per_pixel else None


def bench(models: Sequence[Path], options: BenchOptions) -> list[Row]:
    """Measure artefacts on the same batch, in turns.

    Raises:
        InferenceError: One cannot be run here, or not at that shape.
        MediaError: The folder of `quality` does not hold pairs.
    """
    sessions = [
        open_session(path, SessionOptions(providers=options.providers, threads=options.threads))
        for path in models
    ]
    try:
        runs = [_runner(session, path, options.shape) for session, path in zip(sessions, models, strict=True)]
        timings = measure(runs, seconds=options.seconds)
        rows = []
        for path, session, timing in zip(models, sessions, timings, strict=True):
            parity, proof = _proof(path)
            spec = session.info.spec
            rows.append(
                Row(
                    file=path.name,
                    sha256=sha256_of(path),
                    provider=session.info.provider,
                    shape=options.shape,
                    timing=timing,
                    flops_per_pixel=spec.flops_per_pixel if spec else None,
                    memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                    parity=parity,
                    proof=proof,
                    quality=None,
                )
            )
    finally:
        for session in sessions:
            session.close()
    if options.quality is None:
        return rows
    return [
        dataclasses.replace(row, quality=measure_quality(path, options.quality, threads=options.threads))
        for row, path in zip(rows, models, strict=True)
    ]


def save_results(rows: Sequence[Row], path: Path, command: str) -> None:
    """Write versioned JSON with the environment, every raw value and the warm-ups.

    Raises:
        OSError: The folder cannot be written.
    """
    data = {
        "schema": SCHEMA,
        "command": command,
        "environment": _environment(),
        "results": [
            {
                **dataclasses.asdict(row),
                "pictures_per_second": row.pictures_per_second,
                "megapixels_per_second": row.megapixels_per_second,
                "teraflops": row.teraflops,
            }
            for row in rows
        ],
    }
    with replaced_atomically(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _runner(session: Any, path: Path, shape: tuple[int, int, int]) -> Callable[[], object]:
    info = session.info
    multiple = info.size_multiple
    if shape[1] % multiple or shape[2] % multiple:
        raise InferenceError(
            f"{path} needs height and width to be multiples of {multiple}, not {shape[1]}x{shape[2]}"
        )
    random = np.random.default_rng(0)
    batch: npt.NDArray[Any] = random.integers(0, 256, info.batch_shape(*shape), np.uint8)
    if info.form == "float":
        batch = (batch / np.float32(255)).astype(info.dtype)
    return lambda: session.run(batch)


def _proof(path: Path) -> tuple[tuple[dict[str, Any], ...], str]:
    place = find_manifest(path)
    if place is None:
        return (), "no manifest beside it"
    try:
        manifest = load_manifest(place)
    except ExportError as error:
        return (), f"no manifest that can be read ({error})"
    artefact = manifest.artefact(path.name)
    if artefact is None:
        return (), f"not listed in {place.name}"
    if artefact.sha256 != sha256_of(path):
        return (), f"{place.name} speaks of another {path.name}: its sha256 differs"
    words = {True: "verified", False: "NOT VERIFIED", None: "never run"}
    return artefact.parity, words[artefact.verified]


def _environment() -> dict[str, Any]:
    model = platform.processor()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            model = next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model
            )
    except OSError:
        # Only Linux has it; the architecture must do elsewhere.
        model = model or platform.machine()
    return {
        "machine": platform.machine(),
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }
