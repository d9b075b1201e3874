"""How far an artefact is from PyTorch, in the units that a viewer sees, and what is allowed."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._metrics import psnr, ssim

__all__ = [
    "BOUNDS",
    "QUANTISED",
    "Bound",
    "Comparer",
    "Comparison",
    "Pairs",
    "beyond_rounding",
    "judged",
    "planar",
    "to_levels",
]

Pairs = dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]
"""By name: a picture ``(N, H, W, C)`` uint8 and the reference's output for it, ``(N, C, H·s, W·s)`` float32."""

_TILE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """What a comparison has to hold to count as verified.

    Attributes:
        max_abs: Largest difference of float outputs, with 1.0 the white of the picture.
        min_psnr: PSNR in dB between the two 8-bit pictures.
        min_within_one: Share of 8-bit samples at most one level apart.
        max_bias: Largest mean signed error of one channel, in levels: a shift of colour.
        shift: The mean signed error of each channel that `max_bias` counts from; none where it counts from zero.
    """

    max_abs: float | None = None
    min_psnr: float
    min_within_one: float
    max_bias: float
    shift: tuple[float, ...] = ()


# fp32 has no excuse but the order of its sums. What fp16 (11 bits) and bf16 (8 bits, up to half a level of white at
# the last store alone) may cost at all is twice what they cost the worst of the real nets (studies/bounds.py); what
# they cost the net at hand is less for most, and binds its graphs as well: see `judged`.
BOUNDS = {
    "fp32": Bound(max_abs=1e-4, min_psnr=70.0, min_within_one=1.0, max_bias=0.01),
    "fp16": Bound(min_psnr=50.0, min_within_one=0.99, max_bias=0.2),
    "bf16": Bound(min_psnr=40.0, min_within_one=0.7, max_bias=2.25),
    # Of the unquantised net; what quantisation costs against the truth has a budget of its own.
    "int8": Bound(min_psnr=40.0, min_within_one=0.8, max_bias=0.5),
    "fp8": Bound(min_psnr=40.0, min_within_one=0.8, max_bias=0.5),
    "int8-cpu": Bound(min_psnr=40.0, min_within_one=0.8, max_bias=0.5),
}

QUANTISED = ("int8", "fp8", "int8-cpu")
"""Precisions of `BOUNDS` whose graphs hold integers or 8-bit floats."""

_DRAWN = ("noise", "golden", "shapes")
_UNLIKE = Bound(min_psnr=20.0, min_within_one=0.0, max_bias=16.0)
"""Of a quantised artefact on pictures that are unlike any photograph: noise, hard edges between saturated colours.
What calibration never saw is clipped there, by design; this tells that from a broken scale, which is under 15 dB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The figures of one artefact on one set of pictures, against PyTorch in fp32.

    Attributes:
        on: Name of the set: ``noise``, ``golden``, ``shapes`` or the folder of ``--images``.
        arithmetic: What really computed the figures.
        pictures: Number of pictures.
        max_abs: Largest difference, with 1.0 the white of the picture. Of a uint8 artefact, in whole levels.
        psnr: dB between the 8-bit pictures, over all samples; ``inf`` when they are equal.
        ssim: Mean SSIM of the 8-bit pictures; None where it was not taken, or all are under 11 pixels.
        bias: Mean signed error of each channel, in levels.
        off_by_0: Share of 8-bit samples that are equal.
        off_by_1: Share one level apart.
        off_by_more: Share further apart.
        worst_tile: The 64×64 output tile with the lowest PSNR: ``{"picture", "y", "x", "psnr"}``.
        finite: Whether every value of both was finite.
    """

    on: str
    arithmetic: str
    pictures: int
    max_abs: float
    psnr: float
    ssim: float | None
    bias: tuple[float, ...]
    off_by_0: float
    off_by_1: float
    off_by_more: float
    worst_tile: dict[str, Any]
    finite: bool

    def breaches(self, bound: Bound) -> list[str]:
        """Return what does not hold, one phrase each with the figure and the bound; empty when all does."""
        if not self.finite:
            return ["there is a NaN or an infinity in the output"]
        found = []
        if bound.max_abs is not None and self.max_abs > bound.max_abs:
            found.append(f"max abs {self.max_abs:.2e} > {bound.max_abs:.0e}")
        if not self.psnr >= bound.min_psnr:
            found.append(f"PSNR {self.psnr:.2f} dB < {bound.min_psnr:.4g} dB")
        within = self.off_by_0 + self.off_by_1
        if within < bound.min_within_one - 1e-12:
            found.append(f"{within:.4%} of samples within one level < {bound.min_within_one:.4%}")
        expected = bound.shift or (0.0,) * len(self.bias)
        away = [one - other for one, other in zip(self.bias, expected, strict=True)]
        worst = max(range(len(away)), key=lambda channel: abs(away[channel]), default=None)
        if worst is not None and abs(away[worst]) > bound.max_bias:
            around = f" around {expected[worst]:+.3f}" if bound.shift else ""
            found.append(f"colour shift {self.bias[worst]:+.3f} levels, over ±{bound.max_bias:.3g}{around}")
        return found

    @property
    def rms(self) -> float:
        """Root mean square of the errors of the 8-bit pictures, in levels."""
        return float(255.0 * 10.0 ** (-self.psnr / 20))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Comparison":
        """Return what `to_json` gave.

        Raises:
            KeyError: A figure is missing.
            TypeError: One that bounds count from is none.
            ValueError: The same.
        """
        known: dict[str, Any] = {field.name: data[field.name] for field in dataclasses.fields(cls)}
        known |= {name: float(data[name]) for name in ("psnr", "off_by_more")}
        return cls(**{**known, "bias": tuple(map(float, data["bias"]))})

    def to_json(self) -> dict[str, Any]:
        """Return the figures; an infinite PSNR is the string ``"inf"``, which JSON can carry."""
        data = dataclasses.asdict(self)
        data["bias"] = list(self.bias)
        for holder in (data, data["worst_tile"]):
            value = holder.get("psnr")
            if value is not None and not np.isfinite(value):
                holder["psnr"] = str(value)
        return data


class Comparer:
    """Collects one picture after another and returns the `Comparison` over all of them.

    Args:
        on: Name of the set.
        arithmetic: What computes the results.
        structure: Whether SSIM is worth its time here: on noise at a dozen sizes it is not.
    """

    def __init__(self, on: str, arithmetic: str, *, structure: bool = True) -> None:
        self._on, self._arithmetic, self._structure = on, arithmetic, structure
        self._finite, self._max_abs, self._pictures = True, 0.0, 0
        self._squares, self._samples = 0.0, 0
        self._off = np.zeros(3, np.int64)
        self._bias: npt.NDArray[np.float64] = np.zeros(1)
        self._ssim: list[float] = []
        self._worst: dict[str, Any] = {"picture": "", "y": 0, "x": 0, "psnr": float("inf")}

    def add(self, name: str, reference: npt.NDArray[np.float32], result: npt.NDArray[np.generic]) -> None:
        """Compare one picture.

        Args:
            name: What to call it where its tile is the worst.
            reference: PyTorch's output, ``(N, C, H, W)`` float32, not clipped.
            result: The artefact's: ``(N, C, H, W)`` float, or ``(N, H, W, C)`` uint8.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        expected = to_levels(reference)
        if result.dtype == np.uint8:
            got = result.astype(np.float64)
            self._check(expected.shape, got.shape, name)
            difference = np.abs(got - expected).max() / 255.0
        else:
            self._check(reference.shape, result.shape, name)
            wide = result.astype(np.float32)
            self._finite &= bool(np.isfinite(wide).all())
            got = to_levels(wide)
            difference = np.abs(wide - reference).max()
        self._finite &= bool(np.isfinite(reference).all())
        self._max_abs = max(self._max_abs, float(difference)) if self._finite else float("nan")
        error = got - expected
        self._pictures += 1
        self._squares += float((error**2).sum())
        self._samples += error.size
        steps = np.abs(error)
        self._off += [(steps == 0).sum(), (steps == 1).sum(), (steps > 1).sum()]
        # Sums of whole levels: exact in any order.
        self._bias = self._bias + error.reshape(-1, error.shape[-1]).sum(axis=0)
        for one, other in zip(expected, got, strict=True):
            if self._structure and min(one.shape[:2]) >= 11:
                self._ssim.append(ssim(one, other))
            self._find_worst(name, one, other)

    def result(self) -> Comparison:
        """Return the figures of everything that was added."""
        mse = self._squares / self._samples
        off = self._off / self._samples
        bias = self._bias * self._bias.size / self._samples
        return Comparison(
            on=self._on,
            arithmetic=self._arithmetic,
            pictures=self._pictures,
            max_abs=self._max_abs,
            psnr=float("inf") if mse == 0 else float(10 * np.log10(255.0**2 / mse)),
            ssim=float(np.mean(self._ssim)) if self._ssim else None,
            bias=tuple(float(value) for value in bias),
            off_by_0=float(off[0]),
            off_by_1=float(off[1]),
            off_by_more=float(off[2]),
            worst_tile=self._worst,
            finite=self._finite,
        )

    def _find_worst(self, name: str, expected: npt.NDArray[np.float64], got: npt.NDArray[np.float64]) -> None:
        for y in range(0, expected.shape[0], _TILE):
            for x in range(0, expected.shape[1], _TILE):
                place = np.s_[y : y + _TILE, x : x + _TILE]
                value = psnr(expected[place], got[place])
                # A NaN is worse than anything, and what follows it never takes its place.
                if not (value >= self._worst["psnr"] or np.isnan(self._worst["psnr"])):
                    self._worst = {"picture": name, "y": y, "x": x, "psnr": value}

    @staticmethod
    def _check(expected: tuple[int, ...], got: tuple[int, ...], name: str) -> None:
        if expected != got:
            raise ValueError(f"{name}: the output is {got}, PyTorch's is {expected}")


def beyond_rounding(cost: Comparison, *, sums: bool = False) -> Bound:
    """Return what holds of an artefact whose format rounds and that has no other fault.

    Twice the error of rounding on pictures, a quarter of it for the means, and eight times the share that is off by
    more than a level, which is a tail and the least steady. On noise four times the error and nothing else: a
    GAN-trained net makes flat colours of it that turn with the last bit, by 0.8 levels from one seed to the next in
    bf16, and two sound roundings of one net are up to 1.6 times apart there (1.2 on pictures).

    Args:
        cost: Of rounding alone, on the same set: the reference with every tensor rounded, against it without.
        sums: Whether sums may have been rounded as well, 16 products at a time, as tensor cores that add in fp16 do.
            That makes up to 1.8 times the error and a hundred times the few samples that were far off, so that the
            error and the means may be twice as large, and no share is asked for.
    """
    more = 2 if sums else 1
    # Where rounding costs nothing there is still a last sum in another order: one sample in a hundred.
    if cost.on.split(" ")[0] == "noise":
        return Bound(min_psnr=_psnr_of(more * 4 * cost.rms + 0.1), min_within_one=0.0, max_bias=math.inf)
    return Bound(
        min_psnr=_psnr_of(more * 2 * cost.rms + 0.1),
        min_within_one=0.0 if sums else 1 - 8 * cost.off_by_more - 1e-4,
        max_bias=more * (cost.rms / 4 + 0.05),
        shift=cost.bias,
    )


def judged(
    comparisons: Sequence[Comparison],
    precision: str,
    form: str,
    costs: Mapping[str, Comparison] | None = None,
    *,
    sums: bool = False,
) -> tuple[tuple[dict[str, Any], ...], bool]:
    """Return the figures with what each breaches, and whether none does.

    Args:
        comparisons: What was measured.
        precision: One of `BOUNDS`, by which it is judged.
        form: ``"float"`` or ``"uint8"``.
        costs: By name of the set, what rounding alone costs there. Then `beyond_rounding` has to hold as well.
        sums: Whether what computed may have rounded its sums.
    """
    bound = BOUNDS[precision]
    if form == "uint8":
        # Whole levels: a sample that rounds the other way differs by one, which the shares judge.
        bound = dataclasses.replace(bound, max_abs=None)
    figures = []
    for one in comparisons:
        unlike = precision in QUANTISED and one.on.split(" ")[0] in _DRAWN
        entry = {**one.to_json(), "breaches": one.breaches(_UNLIKE if unlike else bound)}
        cost = (costs or {}).get(one.on)
        if cost is not None:
            entry["rounding"] = {key: cost.to_json()[key] for key in ("psnr", "bias", "off_by_more")}
            entry["breaches"] = entry["breaches"] or [
                f"{breach}, beyond what rounding to {precision} costs"
                for breach in one.breaches(beyond_rounding(cost, sums=sums))
            ]
        figures.append(entry)
    return tuple(figures), not any(entry["breaches"] for entry in figures)


def _psnr_of(rms: float) -> float:
    return 20 * math.log10(255.0 / rms)


def planar(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Turn ``(N, H, W, C)`` uint8 into ``(N, C, H, W)`` float32 0..1."""
    return np.ascontiguousarray(picture.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def to_levels(picture: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Turn float ``(N, C, H, W)`` 0..1 into the 8-bit picture that would be saved, ``(N, H, W, C)``.

    Clipped, and rounded half to even as the uint8 form does. A NaN stays one.
    """
    clipped = np.clip(picture.astype(np.float32), np.float32(0), np.float32(1))
    levels: npt.NDArray[np.float64] = np.rint(clipped * np.float32(255)).astype(np.float64)
    return levels.transpose(0, 2, 3, 1)
