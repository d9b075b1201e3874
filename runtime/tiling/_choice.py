"""The choice of tile, halo and batch from what is free, what is cached and what was measured."""

import dataclasses
import math
from pathlib import Path

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._manifest import amend_artefact, find_manifest, load_manifest, manifest_beside
from esrgan_deploy.runtime.device import MemoryFacts
from esrgan_deploy.runtime.sessions import PICTURE, SessionInfo
from esrgan_deploy.runtime.tiling._plan import AUTO_TILE, TileOptions
from esrgan_deploy.runtime.tiling._seams import SeamCurve
from esrgan_deploy.runtime.tiling._strips import TAIL

__all__ = [
    "SEAM_LEVELS",
    "TileChoice",
    "activation_bytes",
    "choose_strip",
    "choose_tiling",
    "fits_in_parts",
    "load_tiling",
    "store_tiling",
]


# A seam under half of one of 255 levels turns no more than the rounding of a sample.
SEAM_LEVELS = 0.5

# A few places never show the most that all pictures will: photographs were seen at up to 2.4 times what drawn
# pictures showed (realesr-animevideov3 at a halo of 16: 0.34 against 0.14 levels).
PRUDENCE = 2.5

# Feature maps of the widest kind that are alive at once, scratch and all. Seen of ONNX Runtime 1.32 on a processor,
# tiles of 128 and 256: 13.7 to 14.1 kB an input pixel of two RRDBNets x4 with 32 features (2048 B a map at the
# output's size), 1.4 to 1.7 kB of SRVGGNetCompact with 64 (256 B).
MAPS = 7

# Of what is free; the rest is for the pictures, and for what others take meanwhile.
SHARE = 0.5

# Maps of the net's width that the trunk holds at its peak, for each row of a strip and of the reach around it. Seen
# of ONNX Runtime 1.32 on a processor with RRDBNets of 64 features: 2.2 kB a pixel.
TRUNK_MAPS = 9

# The same of the tail, at the output's size.
TAIL_MAPS = 4

# A strip holds no more than this, whatever is free, unless it were lower than so many rows: below 128 it computes
# a fifth and more of its rows twice.
STRIP_BYTES = 3 * 2**29
FAIR_STRIP = 128

LEAST_STRIP = 16

# TensorRT indexes the elements of a tensor with 32 bits (NVIDIA/TensorRT issues 4408 and 4123).
MOST_ELEMENTS = 2**31 - 1

# Widths that kernels on a GPU divide evenly.
STEP = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileChoice:
    """How pictures are to be cut: ``plan_tiles(h, w, tile="auto", largest=tile, halo=halo, batch=batch)``.

    Attributes:
        tile: Edge of the largest tile in input pixels, halo included.
        halo: In input pixels.
        batch: Tiles that go through the net together.
        reason: Why, in one line.
        warning: What is not as it should be, in one line; empty where all is well.
    """

    tile: int
    halo: int
    batch: int
    reason: str
    warning: str = ""

    def __post_init__(self) -> None:
        TileOptions(tile=self.tile, halo=self.halo)
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it is at least 1")


def choose_tiling(
    info: SessionInfo,
    *,
    memory: MemoryFacts,
    curve: SeamCurve | None = None,
) -> TileChoice:
    """Choose tiles that fit into memory, and into the L2 of a GPU, with seams under half an 8-bit level.

    Args:
        info: The session.
        memory: Of what computes.
        curve: What was measured of the seams; None takes a halo of 16.
    """
    align = math.lcm(info.size_multiple, info.scale.denominator)
    least, low, narrow = info.min_shape[0], max(info.min_shape[1:]), min(info.max_shape[1:])
    halo, why, warnings = _halo(curve, align, narrow)
    room = 2 * halo + align
    pixels = _affordable(info, memory)
    cached = _cached(info, memory)
    # A tile of which more than half is halo costs more than memory traffic does.
    useful = max(room, math.ceil(2 * halo / (1 - math.sqrt(0.5))))
    wanted = (
        _down(AUTO_TILE, align)
        if cached is None
        else max(useful, _down(math.isqrt(cached), math.lcm(align, STEP)))
    )
    edge = min(wanted, _down(math.isqrt(pixels // least), align))
    edge = max(min(max(edge, low, room), narrow), low)
    if edge < min(wanted, narrow):
        warnings.append(
            f"memory is short: {memory.free_bytes / 2**30:.2f} GiB are free, so tiles are {edge} and not "
            f"{min(wanted, narrow)} pixels; free some, or use fewer slots"
        )
    if least * edge**2 > pixels:
        warnings.append(
            f"a tile of {edge} may not fit into the {memory.free_bytes / 2**30:.2f} GiB that are free"
        )
    if (edge - 2 * halo) ** 2 * 2 < edge**2:
        warnings.append(f"more than half of every tile of {edge} is halo")
    batch = max(least, min(info.max_shape[0], min(pixels, cached or 0) // edge**2))
    need, free = activation_bytes(info) * batch * edge**2 / 2**30, memory.free_bytes / 2**30
    reason = f"{batch} tile{'s' * (batch > 1)} of {edge} at a time, about {need:.2f} of {free:.1f} GiB free"
    if cached is not None:
        reason += f", as the dense blocks of {cached} pixels fit into {(memory.l2_bytes or 0) / 2**20:.0f} MiB of L2"
    reason += f"; {why}"
    return TileChoice(tile=edge, halo=halo, batch=batch, reason=reason, warning="; ".join(warnings))


def choose_strip(info: SessionInfo, width: int, height: int, *, memory: MemoryFacts) -> int:
    """Return how many rows of a picture are to go through the parts of its net at once.

    Args:
        info: Of a session that has parts.
        width: Columns of the picture, its repeated edge included.
        height: Rows, likewise.
        memory: Of what computes.
    """
    parts, item = info.parts, _item_bytes(info)
    assert parts is not None
    columns = width // parts.step
    row = columns * parts.features * item
    # Rows by which a block is behind the picture, and those that it so keeps of what others made long before.
    behind, kept = {PICTURE: 0}, 0
    for number, block in enumerate(parts.blocks):
        made = [behind[maker] for maker, _ in block.inputs]
        behind[number] = block.reach + max(made)
        kept += sum(behind[number] - before + block.reach for before in made)
    # Twice, as the old rows are there until the new ones are; and what the tail holds of one tile.
    fixed = 2 * kept * row + TAIL_MAPS * _widest(info) * item * (TAIL + 2 * parts.reach) ** 2
    around = 2 * max(block.reach for block in parts.blocks)
    bounds = (STRIP_BYTES, int(memory.free_bytes * SHARE))
    held, most = ((most - fixed) // (TRUNK_MAPS * row) - around for most in bounds)
    rows = min(max(held, FAIR_STRIP), most, height // parts.step)
    return max(rows, LEAST_STRIP) * parts.step


def fits_in_parts(info: SessionInfo, pixels: int, *, memory: MemoryFacts) -> bool:
    """Whether a GPU has room for the trunk of a picture in one piece, in each slot.

    Args:
        info: Of a session with `SessionInfo.most_in_parts`.
        pixels: Of the picture, its repeated edge included.
        memory: Of the GPU.
    """
    spec = info.spec
    features = (spec.features or 64) / spec.unshuffle**2 if spec is not None else 64
    return TRUNK_MAPS * features * _item_bytes(info) * pixels * info.slots <= memory.free_bytes * SHARE


def activation_bytes(info: SessionInfo) -> int:
    """Return about how many bytes a net holds at its peak for each input pixel of a batch.

    The feature maps at the output's size are the widest; 64 features are assumed of a net that says nothing.
    """
    return MAPS * _widest(info) * _item_bytes(info)


def _halo(curve: SeamCurve | None, align: int, narrow: int) -> tuple[int, str, list[str]]:
    warnings: list[str] = []
    halo = TileOptions().halo
    if curve is None:
        why = f"halo {halo}, as the seams of this file were not measured (esrgan-bench --seams)"
    else:
        found = curve.halo_for(SEAM_LEVELS / PRUDENCE)
        if found is None:
            # Past the knee a wider halo costs time and mends nothing: what is left is the arithmetic's own noise.
            floor = curve.bound(curve.halos[-1])
            least = curve.halo_for(SEAM_LEVELS) or 0
            halo = max(halo, next(h for h in curve.halos if h >= least and curve.bound(h) <= 1.5 * floor))
            if curve.bound(halo) >= SEAM_LEVELS:
                warnings.append(
                    f"seams reach {curve.bound(halo):.2f} levels at the halo of {halo}, half a level or more"
                )
        else:
            halo = found
        why = f"halo {halo}, where seams were measured at {curve.bound(halo):.3f} levels"
    halo = -(-halo // align) * align
    if narrow < 2 * halo + align:
        # Half of the tile is kept: less would cost more than twice the work.
        fits = _down(int(narrow * (1 - math.sqrt(0.5)) / 2), align)
        warnings.append(
            f"the net takes at most {narrow} pixels a side: the halo is {fits} and not {halo}, and seams may show"
        )
        halo, why = fits, f"halo {fits}, as tiles are no larger"
    return halo, why, warnings


def _affordable(info: SessionInfo, memory: MemoryFacts) -> int:
    # Input pixels of all batches in flight; on a processor of those that compute.
    slots = info.slots if memory.kind == "gpu" else info.at_once
    pixels = int(memory.free_bytes * SHARE) // (activation_bytes(info) * slots)
    return pixels if memory.kind == "processor" else min(pixels, MOST_ELEMENTS // _widest(info))


def _cached(info: SessionInfo, memory: MemoryFacts) -> int | None:
    # Input pixels whose dense-block buffer, which every convolution of a block reads, stays in the L2 of a GPU.
    spec = info.spec
    if memory.kind != "gpu" or memory.l2_bytes is None or spec is None or spec.features < 1:
        return None
    width = spec.features + 4 * spec.growth if spec.growth else 2 * spec.features
    return memory.l2_bytes * spec.unshuffle**2 // (width * _item_bytes(info))


def _widest(info: SessionInfo) -> int:
    spec, scale = info.spec, math.ceil(info.scale)
    if spec is None or spec.features < 1:
        return 64 * max(1, scale**2)
    outputs = spec.out_channels * max(scale, spec.scale) ** 2
    if spec.architecture == "srvggnetcompact":
        return max(spec.features, outputs)
    return max(spec.features * spec.scale**2, outputs, (spec.features + 4 * spec.growth) // spec.unshuffle**2)


def _item_bytes(info: SessionInfo) -> int:
    # ONNX Runtime computes float16 graphs in float32 on a processor.
    half = info.precision in ("fp16", "bf16", "int8", "fp8") or info.dtype.name == "float16"
    return 2 if half and info.device >= 0 else 4


def _down(value: int, step: int) -> int:
    return value // step * step


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


def load_tiling(path: Path) -> SeamCurve | None:
    """Return what was measured of this file, or else of the one it was built from; None where nothing was.

    How far a pixel sees is a matter of the weights, which a plan has from its graph; a manifest that cannot be read,
    or that describes another file of that name, says nothing.
    """
    manifest = manifest_beside(path)
    entry = manifest.artefact(path.name) if manifest else None
    try:
        if manifest is None or entry is None or entry.sha256 != sha256_of(path):
            return None
        seen: set[str] = set()
        while entry is not None and not entry.tiling and entry.file not in seen:
            seen.add(entry.file)
            entry = manifest.artefact(entry.built_from)
        return SeamCurve.from_json(entry.tiling["curve"]) if entry is not None and entry.tiling else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
