"""Holds a session against the golden pairs: what PyTorch made of small pictures, kept beside the artefacts."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from esrgan_deploy._errors import ExportError, InferenceError, ParityError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._manifest import Artefact, Manifest, find_manifest, load_manifest
from esrgan_deploy._parity import BOUNDS, QUANTISED, Comparer, Comparison, Pairs, judged, planar
from esrgan_deploy.runtime.sessions._protocol import Session, SessionInfo

__all__ = ["verify_golden", "verify_session"]

_AGAIN = "Run: esrgan-export again, with --force"


def verify_golden(session: Session, path: Path) -> tuple[Comparison, ...]:
    """Run the golden pairs that lie beside an artefact, and judge them by the bounds of its precision.

    PyTorch is not needed: the pairs hold what it made, in fp32. What is compared is what this session computes
    here, on this machine, whatever the manifest says of the file.

    Args:
        session: The artefact, open.
        path: Its file; the manifest is looked for beside it.

    Returns:
        The comparisons, all within the bounds.

    Raises:
        InferenceError: There is nothing to verify against: no manifest, no golden file, another one than the
            manifest lists, no bound for the precision, or no picture within the sizes that the session takes.
        ParityError: A bound is breached, with the figures, or the output has another size.
    """  # noqa: DOC501  what _unverified returns
    manifest, folder = _manifest_of(path), path.parent
    listed = manifest.artefact(path.name)
    # The pairs would hold for a file that differs in one bit as well; they were not made for it.
    if listed is None or listed.sha256 != sha256_of(path):
        raise _unverified(path, f"it is not the file of that name in its manifest. {_AGAIN}")
    precision = _precision(session.info, manifest, path)
    if session.info.computes and precision not in QUANTISED:
        # What it was asked to compute in has bounds of its own; those of a quantised graph are as wide.
        precision = session.info.computes
    pairs = _golden_pairs(manifest, folder, path)
    comparisons, _ = verify_session(session, {"golden": pairs})
    if not comparisons:
        sizes = ", ".join("x".join(map(str, lr.shape[:3])) for lr, _ in pairs.values())
        raise _unverified(
            path,
            f"it takes {_range(session.info)} and the golden pictures are {sizes}. "
            "Run: esrgan-export with --shapes that hold one of them, or leave verify away",
        )
    costs = _costs(manifest, precision, path)
    figures, held = judged(comparisons, precision, session.info.form, costs, sums=True)
    if not held:
        found = "; ".join(breach for entry in figures for breach in entry["breaches"])
        raise ParityError(
            f"{path} does not compute here what PyTorch computed: of {comparisons[0].pictures} golden pictures, "
            f"in {session.info.provider}, {found} ({precision}). {_AGAIN}, or use another artefact of the folder"
        )
    return tuple(comparisons)


def verify_session(session: Session, sets: Mapping[str, Pairs]) -> tuple[list[Comparison], int]:
    """Compare what a session computes with the reference: how a plan is verified.

    Args:
        session: Of either form.
        sets: By name of the set, pictures with their reference output.

    Returns:
        The comparisons, and how many pictures lie outside the sizes that the session takes.

    Raises:
        ParityError: The output has another shape than the reference's.
    """
    info, left_out, results = session.info, 0, []
    for on, pairs in sets.items():
        comparer, compared = Comparer(on, info.provider), 0
        for name, (picture, expected) in pairs.items():
            if not _fits(info, picture.shape):
                left_out += 1
                continue
            batch = picture if info.form == "uint8" else planar(picture).astype(info.dtype)
            try:
                comparer.add(name, expected, session.run(np.ascontiguousarray(batch)))
            except ValueError as error:
                raise ParityError(f"{info.name}: {error}") from error
            compared += 1
        if compared:
            results.append(comparer.result())
    return results, left_out


def _manifest_of(path: Path) -> Manifest:
    place = find_manifest(path)
    if place is None:
        raise _unverified(
            path,
            "no manifest lies beside it. Run: esrgan-export -o out, with its checkpoint or, for the model that ships "
            "without one, and keep model.json with the artefact",
        )
    try:
        return load_manifest(place)
    except (ExportError, OSError) as error:
        raise _unverified(path, f"its manifest cannot be read: {error}") from error


def _precision(info: SessionInfo, manifest: Manifest, path: Path) -> str:
    entry = manifest.artefact(path.name)
    listed = entry.precision if entry else ""
    # A graph carries its precision itself: a manifest that says bf16 of an fp32 graph would widen the bounds.
    if listed and info.precision and listed != info.precision:
        raise _unverified(
            path, f"the manifest says that it is {listed} and the file itself says {info.precision}. {_AGAIN}"
        )
    precision = info.precision or listed
    if precision not in BOUNDS:
        known = ", ".join(BOUNDS)
        raise _unverified(path, f"its precision is {precision or 'not known'}; bounds are known for {known}")
    return precision


def _costs(manifest: Manifest, precision: str, path: Path) -> dict[str, Comparison]:
    entry = next((one for one in manifest.artefacts if one.kind == "golden"), None)
    cost = None if entry is None else entry.rounding.get(precision)
    if cost is None:
        return {}
    try:
        found = Comparison.from_json(cost)
        if len(found.bias) != manifest.spec.out_channels:
            raise ValueError(f"of {len(found.bias)} channels")
    except (KeyError, TypeError, ValueError) as error:
        raise _unverified(
            path, f"its manifest does not say what rounding to {precision} costs ({error}). {_AGAIN}"
        ) from error
    return {"golden": found}


def _golden_pairs(manifest: Manifest, folder: Path, path: Path) -> Pairs:
    entry = next((one for one in manifest.artefacts if one.kind == "golden"), None)
    # A plain name: a manifest must not reach outside its folder.
    if entry is None or Path(entry.file).name != entry.file:
        raise _unverified(path, f"its manifest lists no golden pairs. {_AGAIN}")
    file = folder / entry.file
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _unverified(path, f"{file} cannot be read ({error.strerror}). {_AGAIN}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry.sha256:
        raise _unverified(
            path, f"{file} has sha256 {digest[:12]}…, the manifest {entry.sha256[:12]}…. {_AGAIN}"
        )
    return _read_pairs(content, entry, path)


def _read_pairs(content: bytes, entry: Artefact, path: Path) -> Pairs:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as golden:
            names = sorted(name.removesuffix(".input") for name in golden.files if name.endswith(".input"))
            pairs = {name: (golden[f"{name}.input"], golden[f"{name}.output"]) for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unverified(path, f"{entry.file} is no file of golden pairs ({error}). {_AGAIN}") from error
    for lr, hr in pairs.values():
        if lr.dtype != np.uint8 or hr.dtype != np.float32 or lr.ndim != 4 or hr.ndim != 4:
            raise _unverified(
                path, f"{entry.file} holds {lr.dtype} and {hr.dtype}; uint8 and float32 are pairs"
            )
    if not pairs:
        raise _unverified(path, f"{entry.file} holds no pairs. {_AGAIN}")
    return pairs


def _fits(info: SessionInfo, shape: tuple[int, ...]) -> bool:
    sizes = zip(info.min_shape, shape[:3], info.max_shape, strict=True)
    return all(low <= size <= high for low, size, high in sizes)


def _range(info: SessionInfo) -> str:
    low, high = ("x".join(map(str, shape)) for shape in (info.min_shape, info.max_shape))
    return low if low == high else f"{low} to {high}"


def _unverified(path: Path, reason: str) -> InferenceError:
    return InferenceError(f"{path} cannot be verified: {reason}")
