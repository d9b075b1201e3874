"""What is known of an artefact before it is measured: precision, parity, build time."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._errors import ExportError
from esrgan_deploy._files import CHECKPOINTS, sha256_of
from esrgan_deploy._manifest import Artefact, find_manifest, load_manifest
from esrgan_deploy.runtime import SessionInfo

__all__ = ["Known", "known_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """The proof that stands beside a speed, and what else the manifest says of exactly this file.

    Attributes:
        precision: ``"fp32"`` and so on; empty where nothing says it.
        parity: The manifest's comparisons with PyTorch.
        proof: One phrase: verified, not verified, or why nothing is known.
        build_seconds: Time that the build of a plan took.
        bytes_per_pixel: Bytes that a plan's kernels declare to move per LR pixel.
    """

    precision: str = ""
    parity: tuple[dict[str, Any], ...] = ()
    proof: str
    build_seconds: float | None = None
    bytes_per_pixel: float | None = None


def known_of(path: Path, info: SessionInfo, asked: str | None = None) -> Known:
    """Look an artefact up in the manifest beside it, by its digest.

    Args:
        path: The artefact.
        info: Of its session.
        asked: Precision that a checkpoint was asked to compute in.
    """
    if path.suffix.lower() in CHECKPOINTS:
        precision = info.precision or asked or "fp32"
        is_reference = precision == "fp32" and info.device < 0
        proof = "the reference itself" if is_reference else f"PyTorch in {precision}, no parity is known"
        return Known(precision=precision, proof=proof)
    listed, why = _listed(path)
    half = {np.dtype(np.float16): "fp16", np.dtype(np.float32): "fp32"}
    precision = info.precision or (listed.precision if listed else "") or half.get(info.dtype, "")
    if info.computes:
        # The file's figures are of what it says; not of this.
        return Known(
            precision=info.computes, proof=f"computed in {info.computes}, of which no parity is kept"
        )
    if listed is None:
        return Known(precision=precision, proof=why)
    words = {True: "verified", False: "NOT VERIFIED", None: "never run"}
    return Known(
        precision=precision,
        parity=listed.parity,
        proof=words[listed.verified],
        build_seconds=listed.build_seconds,
        bytes_per_pixel=listed.declared_bytes_per_pixel,
    )


def _listed(path: Path) -> tuple[Artefact | None, str]:
    place = find_manifest(path)
    if place is None:
        return None, "no manifest beside it"
    try:
        manifest = load_manifest(place)
    except ExportError as error:
        return None, f"no manifest that can be read ({error})"
    artefact = manifest.artefact(path.name)
    if artefact is None:
        return None, f"not listed in {place.name}"
    if artefact.sha256 != sha256_of(path):
        return None, f"{place.name} speaks of another {path.name}: its sha256 differs"
    return artefact, ""
