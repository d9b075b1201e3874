"""Weights in every published layout, written down from the sources and not from the code under test."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from esrgan_deploy._spec import ModelSpec

Weights = dict[str, Tensor]


@pytest.fixture(scope="session")
def rrdb_weights() -> Callable[..., Weights]:
    """Make random weights of an RRDBNet with the names and the order of BasicSR's rrdbnet_arch.py."""

    def make(spec: ModelSpec, *, seed: int = 0) -> Weights:
        random = torch.Generator().manual_seed(seed)
        f, g = spec.features, spec.growth
        doublings = (spec.scale * spec.unshuffle).bit_length() - 1
        weights: Weights = {}

        def conv(name: str, taken: int, given: int) -> None:
            weights[f"{name}.weight"] = torch.randn(given, taken, 3, 3, generator=random) * 0.1
            weights[f"{name}.bias"] = torch.randn(given, generator=random) * 0.1

        conv("conv_first", spec.in_channels * spec.unshuffle**2, f)
        for n in range(spec.blocks):
            for m in (1, 2, 3):
                for k in (1, 2, 3, 4):
                    conv(f"body.{n}.rdb{m}.conv{k}", f + (k - 1) * g, g)
                conv(f"body.{n}.rdb{m}.conv5", f + 4 * g, f)
        conv("conv_body", f, f)
        for i in range(1, doublings + 1):
            conv(f"conv_up{i}", f, f)
        conv("conv_hr", f, f)
        conv("conv_last", f, spec.out_channels)
        return weights

    return make


@pytest.fixture(scope="session")
def rrdb_dialects() -> Callable[[ModelSpec, Weights], dict[str, Weights]]:
    """Rename weights with BasicSR's names into each published dialect, by its name."""

    def rename(spec: ModelSpec, weights: Weights) -> dict[str, Weights]:
        return {
            "basicsr": dict(weights),
            "esrgan": {_esrgan(name): value for name, value in weights.items()},
            "esrgan-old": {_old(name, spec, fifth=".0"): value for name, value in weights.items()},
            "kair": {_old(name, spec, fifth=""): value for name, value in weights.items()},
        }

    return rename


@pytest.fixture(scope="session")
def named(
    rrdb_spec: Callable[..., ModelSpec],
    rrdb_weights: Callable[..., Weights],
    rrdb_dialects: Callable[[ModelSpec, Weights], dict[str, Weights]],
) -> Callable[..., Weights]:
    """Make the weights of an RRDBNet in one dialect: ``named("kair", scale=2)``."""

    def make(dialect: str = "basicsr", *, seed: int = 0, **fields: int) -> Weights:
        spec = rrdb_spec(**fields)
        return rrdb_dialects(spec, rrdb_weights(spec, seed=seed))[dialect]

    return make


@pytest.fixture(scope="session")
def compact_weights() -> Callable[..., Weights]:
    """Make random weights of a SRVGGNetCompact as Real-ESRGAN's srvgg_arch.py names and orders them."""

    def make(
        *, features: int = 8, blocks: int = 2, scale: int = 4, channels: int = 3, seed: int = 0
    ) -> Weights:
        random = torch.Generator().manual_seed(seed)
        weights: Weights = {}
        for i in range(blocks + 2):
            taken = channels if i == 0 else features
            given = channels * scale**2 if i == blocks + 1 else features
            weights[f"body.{2 * i}.weight"] = torch.randn(given, taken, 3, 3, generator=random) * 0.1
            weights[f"body.{2 * i}.bias"] = torch.randn(given, generator=random) * 0.1
            if i <= blocks:
                weights[f"body.{2 * i + 1}.weight"] = torch.rand(features, generator=random)
        return weights

    return make


def _esrgan(name: str) -> str:
    # xinntao/ESRGAN RRDBNet_arch.py; BSRGAN and RealSR copied the file.
    part, kind = name.rsplit(".", 1)
    if part.startswith("body."):
        _, n, dense, conv = part.split(".")
        return f"RRDB_trunk.{n}.{dense.upper()}.{conv}.{kind}"
    if part.startswith("conv_up"):
        return f"upconv{part.removeprefix('conv_up')}.{kind}"
    return {"conv_body": "trunk_conv", "conv_hr": "HRconv"}.get(part, part) + f".{kind}"


def _old(name: str, spec: ModelSpec, *, fifth: str) -> str:
    # xinntao/ESRGAN transer_RRDB_models.py spells out x4: model.0, .1.sub.23, .3, .6, .8 and .10.
    part, kind = name.rsplit(".", 1)
    if part.startswith("body."):
        _, n, dense, conv = part.split(".")
        inner = fifth if conv == "conv5" else ".0"
        return f"model.1.sub.{n}.{dense.upper()}.{conv}{inner}.{kind}"
    net_scale = spec.scale * spec.unshuffle
    tail = {1: (2, 4), 2: (5, 7), 4: (8, 10), 8: (11, 13), 16: (14, 16)}[net_scale]
    number = {
        "conv_first": "0",
        "conv_body": f"1.sub.{spec.blocks}",
        "conv_up1": "3",
        "conv_up2": "6",
        "conv_up3": "9",
        "conv_up4": "12",
        "conv_hr": str(tail[0]),
        "conv_last": str(tail[1]),
    }[part]
    return f"model.{number}.{kind}"
