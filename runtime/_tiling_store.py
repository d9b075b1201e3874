"""What was measured of a file's seams, kept in the manifest beside it."""

import dataclasses
from pathlib import Path

from esrgan_deploy._errors import ExportError, InferenceError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._manifest import amend_artefact, find_manifest, load_manifest
from esrgan_deploy.runtime._auto_tile import TileChoice
from esrgan_deploy.runtime._seams import SeamCurve

__all__ = ["StoredTiling", "load_tiling", "store_tiling"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTiling:
    """A measurement.

    Attributes:
        curve: The seams by the halo.
        choice: What was chosen from them, on the machine that measured.
        file: Name of the artefact that was measured.
    """

    curve: SeamCurve
    choice: TileChoice
    file: str


def store_tiling(path: Path, curve: SeamCurve, choice: TileChoice) -> Path:
    """Keep a measurement in the entry of this very file, and return the manifest.

    Raises:
        ExportError: The manifest is broken.
        InferenceError: No manifest lies beside the file, or it lists another file of that name.
        OSError: The folder cannot be written.
    """
    manifest = find_manifest(path)
    if manifest is None:
        raise InferenceError(f"no manifest lies beside {path}, so its tiling is not kept. Run: esrgan-export")
    listed = load_manifest(manifest).artefact(path.name)
    if listed is None or listed.sha256 != sha256_of(path):
        raise InferenceError(
            f"{manifest} describes another file than {path}, so its tiling is not kept. Run: esrgan-export again"
        )
    amend_artefact(
        manifest, path.name, tiling={"curve": curve.to_json(), "choice": dataclasses.asdict(choice)}
    )
    return manifest


def load_tiling(path: Path, *, sha256: str | None = None) -> StoredTiling | None:
    """Return what was measured of this file, or else of the one it was built from; None where nothing was.

    How far a pixel sees is a matter of the weights, which a plan has from its graph; a manifest that cannot be read,
    or that describes another file of that name, says nothing.

    Args:
        path: The artefact.
        sha256: Its digest, where it is known already.
    """
    found = find_manifest(path)
    if found is None:
        return None
    try:
        manifest = load_manifest(found)
        entry = manifest.artefact(path.name)
        if entry is None or entry.sha256 != (sha256 or sha256_of(path)):
            return None
        seen: set[str] = set()
        while entry is not None and not entry.tiling and entry.file not in seen:
            seen.add(entry.file)
            entry = manifest.artefact(entry.built_from)
        if entry is None or not entry.tiling:
            return None
        known = {field.name for field in dataclasses.fields(TileChoice)}
        choice = {key: value for key, value in entry.tiling["choice"].items() if key in known}
        return StoredTiling(
            curve=SeamCurve.from_json(entry.tiling["curve"]), choice=TileChoice(**choice), file=entry.file
        )
    except (ExportError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
