"""How far a tile's output differs from the untiled one, measured against the halo."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime.sessions import BatchOutput, Session, SessionInfo, bad_picture_error, judge
from esrgan_deploy.runtime.tiling._batch import pixels_to_network
from esrgan_deploy.runtime.tiling._drawn import drawn_picture

__all__ = ["HALOS", "NotMeasurableError", "SeamCurve", "measure_seams"]

Array = npt.NDArray[Any]

HALOS = (0, 2, 4, 8, 12, 16, 24, 32)

# Measured only where those before did not do: a picture with such a halo around a tile is large.
WIDER = (48, 64, 96, 128)

# Beyond the tile the reference sees at least this much more, or there would be nothing for the tile to lack.
LEAST_MARGIN = 16

DRAWN = 4
POSITIONS = 2


class NotMeasurableError(InferenceError):
    """The net takes no picture that is larger than a tile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeamCurve:
    """The difference of a tile's kept part from the untiled output, by the halo, in 8-bit levels (of 255).

    Attributes:
        halos: In input pixels, ascending.
        largest: For each halo the largest difference of any sample.
        percentile: For each halo the 99.99th percentile of the differences.
        tile: Edge of the tiles, halo included.
        margin: Input pixels that the untiled picture had around the tile.
        pictures: What was enlarged, by name.
        positions: How many tiles were compared.
        rounded: Whether the net rounds to 8 bits itself. Its differences are whole levels then, and a hair's
            breadth can turn a rounding: measure the float form of the same net instead.
    """

    halos: tuple[int, ...]
    largest: tuple[float, ...]
    percentile: tuple[float, ...]
    tile: int
    margin: int
    pictures: tuple[str, ...]
    positions: int
    rounded: bool = False

    def __post_init__(self) -> None:
        if not self.halos or not len(self.halos) == len(self.largest) == len(self.percentile):
            raise ValueError("a curve has as many differences as halos, and at least one")
        if any(a >= b for a, b in itertools.pairwise(self.halos)) or self.halos[0] < 0:
            raise ValueError(f"the halos {self.halos} do not ascend from 0 or more")

    def bound(self, halo: int) -> float:
        """Return the largest difference that was seen at this halo or any larger one; infinite below the first."""
        index = sum(measured <= halo for measured in self.halos) - 1
        return math.inf if index < 0 else max(self.largest[index:])

    def halo_for(self, levels: float = 0.5) -> int | None:
        """Return the smallest measured halo from which on every difference is under so many levels, or None."""
        return next((halo for halo in self.halos if self.bound(halo) < levels), None)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can carry."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SeamCurve":
        """Rebuild a curve from `to_json`; keys that a newer version added are left out.

        Raises:
            TypeError: A field is missing.
            ValueError: The fields do not fit each other.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        fields: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in data.items() if key in known
        }
        return cls(**fields)


def measure_seams(
    session: Session,
    *,
    halos: Sequence[int] | None = None,
    pictures: Mapping[str, Array] | Sequence[Array] | None = None,
    tile: int = 128,
) -> SeamCurve:
    """Compare tiles with the same part of the untiled output.

    A picture somewhat larger than the tile is enlarged as a whole, and the tile in its middle by itself. What lies a
    halo or more from the tile's border is what would be kept, so one tile shows every halo. Two places of each
    picture are taken, those with the most detail.

    Args:
        session: What enlarges.
        halos: In input pixels; rounded up to what the net aligns tiles to, and left out where the net takes no
            picture that is large enough. None takes some up to 32, and where none of them brings the difference under
            half a level, wider ones up to 128.
        pictures: ``(H, W, C)`` or ``(H, W)``, uint8, uint16 or float32 in 0..1; None draws some.
        tile: Edge of the tiles in input pixels; made smaller where the net or the pictures ask for it.

    Raises:
        InferenceError: No picture is large enough, or the net failed.
        NotMeasurableError: The net takes one size only, or sizes too much alike.
        ValueError: A halo is negative.
    """
    if halos is not None:
        if not halos or min(halos) < 0:
            raise ValueError(f"halos are {tuple(halos)}; give at least one, each 0 or more")
        return _measured(session, halos, pictures, tile)
    curve = _measured(session, HALOS, pictures, tile)
    for halo in WIDER:
        if curve.halo_for() is not None:
            break
        larger = {f"drawn {seed}": drawn_picture(seed, 4 * halo + 16) for seed in range(DRAWN)}
        try:
            wider = _measured(
                session, (*HALOS, *(h for h in WIDER if h <= halo)), pictures or larger, 2 * halo + 16
            )
        except InferenceError:
            # No picture is as large, or the net takes none.
            break
        if wider.halos[-1] <= curve.halos[-1]:
            break
        curve = wider
    return curve


def _measured(
    session: Session,
    halos: Sequence[int],
    pictures: Mapping[str, Array] | Sequence[Array] | None,
    tile: int,
) -> SeamCurve:
    info = session.info
    named = _named(pictures)
    side = min(info.max_shape[1], info.max_shape[2], max(min(p.shape[:2]) for p in named.values()))
    measured, edge, margin = _geometry(info, halos, tile, side)
    crop = edge + 2 * margin
    used = {name: picture for name, picture in named.items() if min(picture.shape[:2]) >= crop}
    differences: dict[int, list[Array]] = {halo: [] for halo in measured}
    for piece in itertools.chain.from_iterable(_detailed(p, crop) for p in used.values()):
        whole = _levels(session, piece)
        part = _levels(session, piece[margin : margin + edge, margin : margin + edge])
        start, stop = int(margin * info.scale), int((margin + edge) * info.scale)
        difference = np.abs(whole[:, start:stop, start:stop] - part)
        for halo in measured:
            cut, end = int(halo * info.scale), int((edge - halo) * info.scale)
            differences[halo].append(difference[:, cut:end, cut:end].ravel())
    joined = [np.concatenate(differences[halo]) for halo in measured]
    return SeamCurve(
        halos=measured,
        largest=tuple(float(samples.max()) for samples in joined),
        percentile=tuple(float(np.percentile(samples, 99.99)) for samples in joined),
        tile=edge,
        margin=margin,
        pictures=tuple(used),
        positions=len(differences[measured[0]]),
        rounded=info.form == "uint8",
    )


def _geometry(
    info: SessionInfo, halos: Sequence[int], tile: int, side: int
) -> tuple[tuple[int, ...], int, int]:
    # The halos that can be measured in a picture of that side, the tile and the margin, all of them aligned.
    align = math.lcm(info.size_multiple, info.scale.denominator)
    least = -(-max(info.min_shape[1:]) // align) * align
    wanted = sorted({-(-halo // align) * align for halo in halos})
    while wanted:
        margin = max(wanted[-1], -(-LEAST_MARGIN // align) * align)
        edge = max(least, min(-(-tile // align) * align, (side - 2 * margin) // align * align))
        if edge >= 2 * wanted[-1] + align and edge + 2 * margin <= side:
            return tuple(wanted), edge, margin
        wanted.pop()
    needed = least + 2 * align * -(-LEAST_MARGIN // align)
    if side < min(info.max_shape[1:]):
        raise InferenceError(
            f"the largest picture has {side} pixels on its shorter side; {info.name} needs {needed} to show seams"
        )
    (least_rows, least_columns), (rows, columns) = info.min_shape[1:], info.max_shape[1:]
    raise NotMeasurableError(
        f"{info.name} takes {least_columns}x{least_rows} to {columns}x{rows} pixels, which leaves nothing untiled to "
        "compare a tile with; measure the .onnx graph that it was built from"
    )


def _named(pictures: Mapping[str, Array] | Sequence[Array] | None) -> Mapping[str, Array]:
    if pictures is None:
        return {f"drawn {seed}": drawn_picture(seed) for seed in range(DRAWN)}
    if isinstance(pictures, Mapping):
        named: Mapping[str, Array] = pictures
    else:
        named = {f"picture {number}": picture for number, picture in enumerate(pictures)}
    if not named:
        raise InferenceError("there is no picture to measure seams on; give some, or None to have them drawn")
    return named


def _detailed(picture: Array, crop: int) -> Iterator[Array]:
    # A seam shows where there is something to see: of sixteen places at random those with the steepest gradients.
    samples = picture[:, :, None] if picture.ndim == 2 else picture
    rng = np.random.default_rng(0)
    room = np.array(samples.shape[:2]) - crop + 1
    places = {(int(y), int(x)) for y, x in rng.integers(0, room, (16, 2))}
    pieces = [samples[y : y + crop, x : x + crop] for y, x in sorted(places)]
    pieces.sort(key=_detail, reverse=True)
    yield from pieces[:POSITIONS]


def _detail(piece: Array) -> float:
    plane = piece[:, :, 0].astype(np.float32)
    return float(np.abs(np.diff(plane, axis=0)).mean() + np.abs(np.diff(plane, axis=1)).mean())


def _levels(session: Session, piece: Array) -> Array:
    info = session.info
    channels = piece.shape[2] - (1 - piece.shape[2] % 2)
    samples = piece[:, :, :channels]
    if info.in_channels == 1:
        samples = samples[:, :, channels // 2 : channels // 2 + 1]
    batch = np.zeros(info.batch_shape(info.min_shape[0], *samples.shape[:2]), info.dtype)
    for slot in batch:
        pixels_to_network(samples, slot, info)
    made = session.run(batch)[0]
    wrong = judge(BatchOutput(made[None]), info, 1)
    if wrong is not None:
        raise bad_picture_error(wrong, info)
    levels: Array
    if info.form == "uint8":
        levels = made.transpose(2, 0, 1).astype(np.float32)
    else:
        # Clipped as the picture will be. A copy: the session's output is its own until the next call.
        levels = np.clip(made, 0.0, 1.0, dtype=np.float32) * np.float32(255)
    return levels
