"""SRVGGNetCompact of any depth and scale, and what is refused."""

import random
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esrgan_deploy import _errors
from esrgan_deploy.export.checkpoints._identify import identify
from esrgan_deploy.export.checkpoints._layout import UnknownFamilyError

Weights = dict[str, Tensor]
Maker = Callable[..., Weights]
SHA = "0" * 64


@settings(max_examples=25, deadline=None)
@given(
    features=st.integers(1, 9),
    blocks=st.integers(0, 40),
    scale=st.integers(1, 6),
    channels=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 9),
)
def test_depth_and_scale_are_read_from_shapes_in_any_order(
    compact_weights: Maker, features: int, blocks: int, scale: int, channels: int, seed: int
) -> None:
    weights = compact_weights(features=features, blocks=blocks, scale=scale, channels=channels)
    names = list(weights)
    random.Random(seed).shuffle(names)
    found = identify({name: weights[name] for name in names}, source="x", sha256=SHA)
    spec = found.spec
    assert (spec.architecture, found.dialect) == ("srvggnetcompact", "compact")
    assert (spec.features, spec.blocks, spec.scale) == (features, blocks, scale)
    assert (spec.in_channels, spec.out_channels, spec.growth, spec.unshuffle) == (channels, channels, 0, 1)
    assert list(found.tensors) == list(weights)
    for name, value in weights.items():
        assert torch.equal(found.tensors[name], value)


def _refused(weights: Weights, told: str, kind: type[Exception] = _errors.CheckpointError) -> None:
    with pytest.raises(kind, match=told) as caught:
        identify(weights, source="net.pth", sha256=SHA)
    assert "\n" not in str(caught.value)


def test_each_missing_tensor_is_found(compact_weights: Maker) -> None:
    weights = compact_weights()
    for key in weights:
        _refused({name: value for name, value in weights.items() if name != key}, re.escape(repr(key)))


@pytest.mark.parametrize("blocks", [0, 2])
def test_nets_of_other_activations_say_why_they_are_refused(blocks: int, compact_weights: Maker) -> None:
    """ReLU and LeakyReLU leave no weights: guessing one of them would make a wrong picture."""
    weights = compact_weights(blocks=blocks)
    convolutions = {name: value for name, value in weights.items() if int(name.split(".")[1]) % 2 == 0}
    _refused(convolutions, "ReLU or LeakyReLU")


@pytest.mark.parametrize(
    ("key", "shape", "told"),
    [
        ("body.6.weight", (50, 8, 3, 3), "makes 50 channels"),
        ("body.6.weight", (2, 8, 3, 3), "makes 2 channels"),
        ("body.6.bias", (47,), "'body.6.bias' has the shape"),
        ("body.1.weight", (1,), "'body.1.weight' has the shape"),
        ("body.0.weight", (8, 3), "'body.0.weight' has the shape"),
        ("body.4.weight", (8, 9, 3, 3), "'body.4.weight' has the shape"),
        ("body.7.weight", (48,), "without 'body.8.weight'"),
    ],
)
def test_wrong_shapes_are_refused_with_the_key(
    key: str, shape: tuple[int, ...], told: str, compact_weights: Maker
) -> None:
    _refused(compact_weights() | {key: torch.zeros(shape)}, told)


def test_the_scale_may_be_given_and_must_agree(compact_weights: Maker) -> None:
    weights = compact_weights(scale=2)
    assert identify(weights, source="x", sha256=SHA, scale=2).spec.scale == 2
    with pytest.raises(_errors.CheckpointError, match=r"enlarges by 2.*not by 3"):
        identify(weights, source="x", sha256=SHA, scale=3)


def test_another_net_with_a_body_is_not_taken_for_one(compact_weights: Maker) -> None:
    _refused(compact_weights() | {"tail.weight": torch.zeros(3)}, "no family", UnknownFamilyError)
