"""The manifest ``model.json`` that lies beside the artefacts and says what each of them is and computes."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from esrgan_deploy._errors import ExportError, ParityError
from esrgan_deploy._files import locked, replaced_atomically, sha256_of
from esrgan_deploy._spec import ModelSpec

__all__ = [
    "Artefact",
    "Manifest",
    "amend_artefact",
    "find_manifest",
    "load_manifest",
    "manifest_beside",
    "save_manifest",
]

SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artefact:
    """One file of an export.

    Attributes:
        file: Its name, without a folder.
        kind: ``"onnx"``, ``"plan"``, ``"part"`` (trunk or tail of a graph or a plan), ``"golden"`` or ``"scales"``.
        sha256: Its digest, 64 hexadecimal digits.
        size: Its length in bytes.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"``, …; the arithmetic of the convolutions.
        form: ``"float"`` (NCHW RGB 0..1 in the graph's own dtype) or ``"uint8"`` (NHWC RGB 0..255).
        outscale: Output pixels per input pixel and axis of this artefact; differs from the model's scale
            where a resize was asked for.
        size_multiple: Height and width of its input must be multiples of this.
        opset: ONNX operator set, for a graph.
        shapes: ``(min, opt, max)`` as ``(N, H, W)`` triples, for a plan.
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``, for a plan.
        flavour_version: Version of that library, for a plan.
        compute_capabilities: ``("8.6", …)`` that a plan was built for; empty means the library's own choice.
        built_from: Name of the artefact that this one was made from.
        options: What the builder was asked, by the names of ``BuildOptions``, for a plan: with `shapes`,
            `compute_capabilities` and `built_from` all that a rebuild needs. Empty in older manifests.
        gpu: Name of the GPU that a plan was built on, where it was built for that one.
        driver: Newest CUDA version that the driver there knew, ``13000`` for 13.0.
        dtypes: Number of convolution kernels by dtype that the builder reported, for a plan.
        build_seconds: Time that the build took, for a plan.
        declared_bytes_per_pixel: Bytes that a plan's kernels declare to read and write per input pixel; None where
            the plan takes a range of sizes, whose tensors have none.
        verified: True when it was run and held its bounds, False when it breached one, None when nothing
            here could run it.
        parity: What was measured, one dictionary per comparison.
        note: What the reader has to know beside the figures.
        tiling: What was measured of its tiles: the halo, and on what. Empty where nothing was.
        watched: Whether the graph has the second output ``health``.
        reach: Of a tail that was built as a plan: rows and columns of its input beyond those that a pixel is made of.
        quantised: Of a quantised graph: how many convolutions, their share of the multiply-adds, the pictures that
            calibrated and those that judged, the budget and what was lost. Empty elsewhere.
        rounding: Of the golden pairs: by ``"fp16"`` and ``"bf16"``, what rounding every tensor to it costs the net on
            them, as `parity` has it. Whoever computes in it is held against that. Empty elsewhere and where there was
            no checkpoint to measure it on.
    """

    file: str
    kind: str
    sha256: str
    size: int
    precision: str = ""
    form: str = ""
    outscale: float | None = None
    size_multiple: int = 1
    opset: int | None = None
    shapes: tuple[tuple[int, int, int], ...] = ()
    flavour: str = ""
    flavour_version: str = ""
    compute_capabilities: tuple[str, ...] = ()
    built_from: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    gpu: str = ""
    driver: int | None = None
    dtypes: dict[str, int] = dataclasses.field(default_factory=dict)
    build_seconds: float | None = None
    declared_bytes_per_pixel: float | None = None
    verified: bool | None = None
    parity: tuple[dict[str, Any], ...] = ()
    note: str = ""
    tiling: dict[str, Any] = dataclasses.field(default_factory=dict)
    watched: bool = False
    reach: int = 0
    quantised: dict[str, Any] = dataclasses.field(default_factory=dict)
    rounding: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_file(cls, path: Path, **fields: Any) -> "Artefact":
        """Describe a file that has just been written; its name, digest and size are read from it."""
        return cls(file=path.name, sha256=sha256_of(path), size=path.stat().st_size, **fields)


_FINER = ("fp16", "bf16", "fp32")
"""Precisions to go back to, from the fastest on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one export made.

    Attributes:
        spec: The model.
        source: Name of the checkpoint's file, without a folder.
        artefacts: Every file beside the manifest.
        tool: Versions of what made them: ``{"esrgan-deploy": "0.1.0", "torch": …}``.
        warnings: What the export warned of, one sentence each.
    """

    spec: ModelSpec
    source: str
    artefacts: tuple[Artefact, ...]
    tool: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def artefact(self, file: str) -> Artefact | None:
        """Return the artefact of that name, or None."""
        return next((a for a in self.artefacts if a.file == file), None)

    @property
    def verified(self) -> bool | None:
        """True where all that could be run held its bounds, False where one did not, None where nothing was run."""
        found = [artefact.verified for artefact in self.artefacts if artefact.verified is not None]
        return all(found) if found else None

    def raise_if_breached(self, place: str | Path = "model.json") -> None:
        """Raise for artefacts that breached a bound.

        Args:
            place: Where the manifest lies, for the message.

        Raises:
            ParityError: One did, with the figures.
        """
        found = [
            f"{artefact.file} on {figures['on'].split(' ')[0]}: {'; '.join(figures['breaches'])}"
            for artefact in self.artefacts
            for figures in artefact.parity
            if figures.get("breaches")
        ]
        if found:
            raise ParityError(
                f"not verified: {' | '.join(found)}. The files are marked so in {place}. {self._advice()}"
            )

    def _advice(self) -> str:
        made = [artefact for artefact in self.artefacts if artefact.parity]
        refused = {artefact.precision for artefact in made if artefact.verified is False}
        held = sorted({artefact.precision for artefact in made if artefact.verified} - refused)
        left = [precision for precision in _FINER if precision not in refused | set(held)]
        kept = f"What is in {' and '.join(held)} is verified. " if held else ""
        if not left or set(held) & {"fp16", "bf16"}:
            return f"{kept}Look at the layers that were warned of"
        return f"{kept}Run: with --precision {' or '.join(left)}, and look at the layers that were warned of"


def find_manifest(artefact: Path) -> Path | None:
    """Return the manifest that lies beside an artefact and lists it, or None.

    ``out/model.fp16.plan`` is listed in ``out/model.json``: the manifest's stem is the name up to a dot.
    """
    parts = artefact.name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        candidate = artefact.with_name(".".join(parts[:length]) + ".json")
        if os.path.isfile(candidate):  # noqa: PTH113 - Path.is_file raises where the name is too long
            return candidate
    return None


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        ExportError: It is not a manifest, or of a schema that this version does not know.
    """  # noqa: DOC501  ValueError is caught here
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or "schema" not in data:
            raise ValueError("it has no field 'schema'")
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r} and this version reads {SCHEMA}")
        return Manifest(
            spec=ModelSpec.from_json(data["spec"]),
            source=data["source"],
            artefacts=tuple(_artefact_from_json(entry) for entry in data["artefacts"]),
            tool=dict(data.get("tool", {})),
            warnings=tuple(data.get("warnings", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{path} is not a manifest of this package ({error}). Run: esrgan-export again, into an empty folder"
        ) from error


def manifest_beside(artefact: Path) -> Manifest | None:
    """Return what `find_manifest` finds, or None: one that cannot be read vouches for nothing."""
    place = find_manifest(artefact)
    try:
        return None if place is None else load_manifest(place)
    except (ExportError, OSError):
        return None


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest, whole or not at all.

    Raises:
        OSError: The folder cannot be written.
    """
    data = {"schema": SCHEMA, **dataclasses.asdict(manifest)}
    with replaced_atomically(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def amend_artefact(path: Path, file: str, **changes: Any) -> Artefact:
    """Change one entry of a manifest, with a lock on ``<manifest>.lock`` so that no other change is lost.

    Args:
        path: The manifest.
        file: Name of the artefact.
        changes: New values of attributes of `Artefact`.

    Returns:
        The entry as it stands now.

    Raises:
        ExportError: It is not a manifest, or lists no such artefact.
        OSError: The folder cannot be written.
    """
    with locked(path.with_name(path.name + ".lock")):
        manifest = load_manifest(path)
        old = manifest.artefact(file)
        if old is None:
            raise ExportError(f"{path} lists no {file}; it lists {_names(manifest)}")
        new = dataclasses.replace(old, **changes)
        entries = tuple(new if entry is old else entry for entry in manifest.artefacts)
        save_manifest(dataclasses.replace(manifest, artefacts=entries), path)
    return new


def _names(manifest: Manifest) -> str:
    return ", ".join(entry.file for entry in manifest.artefacts) or "nothing"


def _artefact_from_json(entry: dict[str, Any]) -> Artefact:
    known = {field.name for field in dataclasses.fields(Artefact)}
    fields = {key: value for key, value in entry.items() if key in known}
    fields["shapes"] = tuple(tuple(triple) for triple in fields.get("shapes", ()))
    fields["compute_capabilities"] = tuple(map(str, fields.get("compute_capabilities", ())))
    fields["parity"] = tuple(fields.get("parity", ()))
    for name in ("options", "tiling", "quantised", "rounding"):
        fields[name] = dict(fields.get(name, {}))
    for field in dataclasses.fields(Artefact):
        if field.type in (str, int, bool) and not isinstance(
            fields.get(field.name, field.type()), field.type
        ):
            raise ValueError(f"{field.name} of {fields.get('file')!r} is {fields[field.name]!r}")
    return Artefact(**fields)
