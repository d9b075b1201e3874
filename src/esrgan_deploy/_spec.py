"""What a model is: read once from the checkpoint, then carried with every artefact made from it."""

import dataclasses
from typing import Any, Literal

__all__ = ["HEALTH_OUTPUT", "METADATA_KEY", "UNBOUNDED", "Form", "ModelSpec", "upsampling_steps"]

METADATA_KEY = "esrgan_deploy"
"""Under this key a written graph carries its facts as JSON, so that it works without the manifest too."""

HEALTH_OUTPUT = "health"
"""Name of the second output of a graph that watches itself; `BatchOutput.health` says what it holds."""

Form = Literal["float", "uint8"]
"""What a graph takes and gives: ``(N, C, H, W)`` RGB 0..1 in its own dtype, or ``(N, H, W, C)`` RGB 0..255."""

UNBOUNDED = 2**31 - 1
"""The largest side of a graph that states none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything downstream has to know about a generator, so that nothing downstream guesses it again.

    Attributes:
        architecture: ``"rrdbnet"`` (ESRGAN, arXiv:1809.00219), ``"srvggnetcompact"`` (Real-ESRGAN, arXiv:2107.10833),
            ``"span"`` (arXiv:2311.12770), ``"onnx"`` (a graph that was handed in as it is) or a name from spandrel.
        scale: Output pixels per input pixel and axis, as the weights compute it.
        in_channels: Channels of the picture that goes in (3 for RGB), before any pixel-unshuffle.
        out_channels: Channels of the picture that comes out.
        features: Width of the trunk (``nf``/``num_feat``).
        blocks: Number of RRDBs, of body convolutions for SRVGGNetCompact (``nb``/``num_conv``), or of SPAN's blocks.
        growth: Channels that each dense convolution adds (``gc``/``num_grow_ch``); 0 where there are none.
        unshuffle: Factor of the pixel-unshuffle in front (Real-ESRGAN x2plus: 2); 1 for none.
        mean: What a SPAN takes off each channel of the picture, 0..1; empty where it takes the picture as it is.
        size_multiple: Height and width of the input must be multiples of this.
        supports_half: Whether the architecture is known to work in float16.
        supports_bfloat16: Whether the architecture is known to work in bfloat16.
        source_sha256: Digest of the file that the weights came from, 64 hexadecimal digits; of an interpolation, of
            both files' digests and the strength; of ncnn's two files, of their digests with a space between, the
            ``.param``'s first.
    """

    architecture: str
    scale: int
    in_channels: int
    out_channels: int
    features: int
    blocks: int
    growth: int
    source_sha256: str
    unshuffle: int = 1
    mean: tuple[float, ...] = ()
    size_multiple: int = 1
    supports_half: bool = True
    supports_bfloat16: bool = True

    def __post_init__(self) -> None:
        for name in ("scale", "in_channels", "out_channels", "unshuffle", "size_multiple"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"ModelSpec.{name} is {value!r}; it is a whole number of at least 1")
        # JSON has no tuples.
        object.__setattr__(self, "mean", tuple(self.mean))

    @property
    def flops_per_pixel(self) -> int | None:
        """Floating-point operations per input pixel: two for each multiply-add of a convolution.

        Biases, activations, residual adds and resampling are left out, as the field does. ``None`` where the
        architecture is not one whose layers follow from the other attributes.
        """
        if self.architecture == "rrdbnet":
            return self._rrdbnet_flops()
        if self.architecture == "srvggnetcompact":
            f = self.features
            weights = self.in_channels * f + self.blocks * f * f + f * self.out_channels * self.scale**2
            return 2 * 9 * weights
        if self.architecture == "span":
            f = self.features
            weights = (
                self.in_channels * f + (3 * self.blocks + 1) * f * f + f * self.out_channels * self.scale**2
            )
            return 2 * (9 * weights + 4 * f * f)
        return None

    def _rrdbnet_flops(self) -> int:
        f, g = self.features, self.growth
        dense = sum((f + i * g) * g for i in range(4)) + (f + 4 * g) * f
        body = self.in_channels * self.unshuffle**2 * f + self.blocks * 3 * dense + f * f
        # The net in front of the upsampling runs once per unshuffled pixel; each doubling (and the one tripling
        # of old-architecture x3 nets) convolves at the size that it has made.
        net_scale = self.scale * self.unshuffle
        tail, size = 0, 1
        for step in upsampling_steps(net_scale):
            size *= step
            tail += size * size * f * f
        tail += size * size * (f * f + f * self.out_channels)
        return round(2 * 9 * (body + tail) / self.unshuffle**2)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can carry."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelSpec":
        """Rebuild a specification from `to_json`; keys that a newer version added are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


def upsampling_steps(net_scale: int) -> tuple[int, ...]:
    """Return the factors by which an RRDBNet enlarges, in order: ``(2, 2)`` for x4, ``(3,)`` for x3.

    Raises:
        ValueError: The scale is neither 3 nor a power of two.
    """
    if net_scale == 3:
        return (3,)
    if net_scale < 1 or net_scale & (net_scale - 1):
        raise ValueError(f"an RRDBNet enlarges by 1, 2, 3, 4, 8 or 16, not by {net_scale}")
    return (2,) * (net_scale.bit_length() - 1)
