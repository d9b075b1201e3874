"""What a benchmark found, and the versioned JSON that holds it.

Schema 2, the dictionary that `Results.to_json` returns:

```
schema       2
command      the command line
created      ISO 8601, UTC
environment  machine, cpu, cores, memory_gib, system, python, packages {name: version}, gpus [{name, driver, …}]
state        {"before" | "during" | "after": {load, cpu_mhz, gpus [{clock_mhz, power_w, temperature_c, …}]}}
options      the fields of BenchOptions
peaks        what the machine itself did in the same run, see `_peaks.py`; null where it was not asked for
results      a list of rows, below
ratios       [{name, to, timing, shape, streams, tile, low, median, high}]: how many times as fast as `to`, by pairs
             of the same round, with the quartiles
seams        {file: what `run_seams` returns}
warnings     [one sentence each]
```

A row is `Row` field by field. Its `timings` are by name ``latency`` (one batch at a time, host array to host array),
``throughput`` (`streams` batches in flight, seconds per batch) and ``device`` (a batch that lies on the GPU already);
each is `Timing` (``warmups``, ``values``: every raw value in seconds, ``values[i]`` of round ``i``) with what follows
from it: ``p50 p95 p99 spread unstable pictures_per_second megapixels_per_second teraflops compute_share
bytes_per_second bandwidth_share``. One that was not taken is absent, and ``notes`` says why.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy.benchmarks.measure import UNSTABLE, Timing

__all__ = ["Results", "Row", "load_results", "point_in_words", "save_results"]

SCHEMA = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The figures of one artefact, or of one peer, at one point of the sweep.

    Attributes:
        name: Of the artefact's file, or of the peer.
        kind: ``"artefact"`` or ``"peer"``.
        sha256: Of the file; empty for a peer.
        provider: What computed, in words.
        precision: ``"fp32"`` and so on; empty where it is not known.
        form: ``"float"`` or ``"uint8"``; empty for a peer.
        spec: The model's specification, where it is known.
        shape: ``(N, H, W)`` of the batch, or of the picture that was cut into tiles, in LR pixels.
        streams: Batches in flight for the throughput.
        tile: Edge of the tiles; None where a batch was run without tiling.
        threads: Threads that were asked for.
        timings: By name; see the head of this module.
        notes: By the name of a timing that was not taken: why not.
        flops_per_pixel: From the specification; None where it is not known.
        bytes_per_pixel: Bytes that the plan's kernels declare to move per LR pixel; None where it is not known.
        peak_flops: Operations per second that this machine reached in this run, of the kind that counts here.
        peak_bytes: Bytes per second that a copy reached in this run.
        memory: ``{"host", "host_before", "device"}`` in bytes, of a process of its own; see `_memory.py`.
        build_seconds: Time that a plan's build took, from the manifest.
        parity: The comparisons with PyTorch that the manifest holds for exactly this file.
        proof: One phrase: verified, not verified, or why nothing is known.
        difference: Largest difference from the first artefact's picture for the measured input, 0..1.
        quality: Against the truth, where a folder was given.
    """

    name: str
    kind: str = "artefact"
    sha256: str = ""
    provider: str = ""
    precision: str = ""
    form: str = ""
    spec: dict[str, Any] | None = None
    shape: tuple[int, int, int]
    streams: int = 1
    tile: int | None = None
    threads: int | None = None
    timings: dict[str, Timing]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    flops_per_pixel: int | None = None
    bytes_per_pixel: float | None = None
    peak_flops: float | None = None
    peak_bytes: float | None = None
    memory: dict[str, int | None] | None = None
    build_seconds: float | None = None
    parity: tuple[dict[str, Any], ...] = ()
    proof: str
    difference: float | None = None
    quality: dict[str, Any] | None = None

    @property
    def pixels(self) -> int:
        """LR pixels of one batch."""
        n, h, w = self.shape
        return n * h * w

    @property
    def best(self) -> str:
        """Name of the timing that the pictures per second are of: throughput where it was taken."""
        return "throughput" if "throughput" in self.timings else "latency"

    @property
    def point(self) -> tuple[tuple[int, int, int], int, int | None]:
        """What of the sweep it was measured at."""
        return self.shape, self.streams, self.tile

    def figures(self, timing: str) -> dict[str, Any]:
        """Return what follows from the values of a timing; None stands for what is not known."""
        taken = self.timings[timing]
        pixels = self.pixels / taken.median
        flops = None if self.flops_per_pixel is None else pixels * self.flops_per_pixel
        moved = None if self.bytes_per_pixel is None else pixels * self.bytes_per_pixel
        return {
            "p50": taken.median,
            "p95": taken.percentile(0.95),
            "p99": taken.percentile(0.99),
            "spread": taken.spread,
            "unstable": taken.spread > UNSTABLE,
            "pictures_per_second": self.shape[0] / taken.median,
            "megapixels_per_second": pixels / 1e6,
            "teraflops": None if flops is None else flops / 1e12,
            "compute_share": flops / self.peak_flops if flops and self.peak_flops else None,
            "bytes_per_second": moved,
            "bandwidth_share": moved / self.peak_bytes if moved and self.peak_bytes else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can carry."""
        data = dataclasses.asdict(self)
        for name, values in data["timings"].items():
            values.update(self.figures(name))
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Row":
        """Rebuild a row from `to_json`; what follows from the raw values is computed anew.

        Raises:
            ValueError: It has no latency.
            KeyError: Its shape or its timings are missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in data.items() if key in known}
        n, h, w = fields["shape"]
        fields["shape"] = (int(n), int(h), int(w))
        fields["parity"] = tuple(fields.get("parity", ()))
        fields["timings"] = {
            name: Timing(
                warmups=tuple(map(float, taken["warmups"])), values=tuple(map(float, taken["values"]))
            )
            for name, taken in fields["timings"].items()
        }
        if "latency" not in fields["timings"]:
            raise ValueError(f"the row of {fields.get('name')} has no latency")
        return cls(**fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """One run of the benchmark; the fields are described at the head of this module."""

    command: str
    created: str
    environment: dict[str, Any]
    state: dict[str, Any]
    options: dict[str, Any]
    peaks: dict[str, Any] | None
    rows: tuple[Row, ...]
    ratios: tuple[dict[str, Any], ...] = ()
    seams: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the dictionary of schema 2; what JSON has no type for is a list or a string in it."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        rows = data.pop("rows")
        plain = {"schema": SCHEMA, **data, "results": [row.to_json() for row in rows]}
        result: dict[str, Any] = json.loads(json.dumps(plain, default=_plain))
        return result

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Results":
        """Rebuild results from `to_json`.

        Raises:
            ValueError: It is of another schema, or a field is missing or broken (also KeyError, TypeError).
        """
        if not isinstance(data, dict) or "schema" not in data:
            raise ValueError("it has no field 'schema'")
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r} and this version reads {SCHEMA}")
        known = {field.name for field in dataclasses.fields(cls)} - {"rows"}
        fields = {key: value for key, value in data.items() if key in known}
        for name in ("ratios", "warnings"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(rows=tuple(Row.from_json(row) for row in data["results"]), **fields)


def save_results(results: Results, path: Path) -> None:
    """Write versioned JSON with the environment, every raw value and the warm-ups.

    Raises:
        OSError: The folder cannot be written.
    """
    text = json.dumps(results.to_json(), indent=2)
    # Thousands of values with a line for each hide everything else from whoever opens the file.
    text = re.sub(r"\[[^][{}\"]*\]", lambda match: " ".join(match[0].split()), text)
    with replaced_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def load_results(path: Path) -> Results:
    """Read what `save_results` wrote.

    Raises:
        BenchmarkError: The file is none, or of another schema.
        OSError: It cannot be read.
    """  # noqa: DOC501  ValueError is caught here
    try:
        results = Results.from_json(json.loads(path.read_text(encoding="utf-8")))
        for row in results.rows:
            for name, timing in row.timings.items():
                if not timing.values or not all(0 < value < math.inf for value in timing.values):
                    raise ValueError(f"{row.name}: its {name} holds no times above 0")
        return results
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(
            f"{path} holds no results that can be read ({error}). "
            f"Measure again with this version: esrgan-bench MODEL --json {path}"
        ) from error


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    convert: Callable[[], object] | None = getattr(value, "tolist", None)
    return convert() if convert else str(value)


def point_in_words(row: Row) -> str:
    """Return where in a sweep a row was measured."""
    n, h, w = row.shape
    words = f"batch {n}x{h}x{w}" if row.tile is None else f"picture {h}x{w}, tile {row.tile or 'none'}"
    return f"{words}, {row.streams} in flight" if row.streams > 1 else words
