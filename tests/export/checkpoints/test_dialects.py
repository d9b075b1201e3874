"""RRDBNet in every published naming, and what is refused."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esrgan_deploy import _errors
from esrgan_deploy.export.checkpoints._identify import identify
from esrgan_deploy.export.checkpoints._layout import UnknownFamilyError

Weights = dict[str, Tensor]
Named = Callable[..., Weights]

DIALECTS = ["basicsr", "esrgan", "esrgan-old", "kair"]
SHA = "0" * 64


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.fixed_dictionaries(
        {"blocks": st.sampled_from([1, 2, 4, 11]), "features": st.integers(1, 9), "growth": st.integers(1, 5)}
    ),
    net=st.sampled_from([(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (1, 4)]),
    dialect=st.sampled_from(DIALECTS),
    seed=st.integers(0, 9),
)
def test_the_dimensions_are_read_from_shapes_in_any_order(
    rrdb_spec: Any, named: Named, net: tuple[int, int], dialect: str, seed: int, sizes: dict[str, int]
) -> None:
    """What a file says of itself is the order and the shapes of its tensors, and nothing else."""
    fields = sizes | {"scale": net[0], "unshuffle": net[1]}
    weights, renamed = named(**fields), list(named(dialect, **fields).items())
    random.Random(seed).shuffle(renamed)
    found = identify(dict(renamed), source="x", sha256=SHA)
    assert (found.spec, found.dialect) == (rrdb_spec(**fields), dialect)
    assert list(found.tensors) == list(weights)
    for name, value in weights.items():
        assert torch.equal(found.tensors[name], value)


NETS = [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4)]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("net", NETS, ids=lambda net: f"x{net[0]} unshuffle {net[1]}")
def test_each_scale_is_read_in_each_dialect(
    net: tuple[int, int], dialect: str, rrdb_spec: Any, named: Named
) -> None:
    fields = {"scale": net[0], "unshuffle": net[1], "blocks": 1}
    assert identify(named(dialect, **fields), source="x", sha256=SHA).spec == rrdb_spec(**fields)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, named: Named) -> None:
    weights = {name: value.to(dtype) for name, value in named().items()}
    for name, value in identify(weights, source="x", sha256=SHA).tensors.items():
        assert value.dtype is torch.float32
        assert torch.equal(value, weights[name].float())


def test_the_tensors_are_contiguous_and_share_nothing_with_the_file(named: Named) -> None:
    """A rewrite of one weight in place must not reach another one, nor a second reading."""
    weights = named()
    shared = weights["body.0.rdb1.conv1.bias"]
    weights["body.0.rdb1.conv2.bias"] = shared
    weights["conv_hr.weight"] = weights["conv_hr.weight"].permute(1, 0, 2, 3)
    found = identify(weights, source="x", sha256=SHA).tensors
    assert all(value.is_contiguous() for value in found.values())
    found["body.0.rdb1.conv1.bias"].add_(1)
    assert torch.equal(found["body.0.rdb1.conv2.bias"], shared)


def test_real_esrgan_x2plus_and_its_x1_sibling(named: Named) -> None:
    """12 and 48 channels going in are 3 folded by 2 and 4; the scale is the picture's."""
    for folded, factor, scale in ((12, 2, 2), (48, 4, 1)):
        weights = named(scale=scale, unshuffle=factor)
        assert weights["conv_first.weight"].shape[1] == folded
        spec = identify(weights, source="x", sha256=SHA).spec
        found = (spec.in_channels, spec.unshuffle, spec.scale, spec.size_multiple)
        assert found == (3, factor, scale, factor)


def test_channels_that_are_no_fold_are_the_pictures_own(named: Named) -> None:
    weights = named()
    for channels in (1, 4, 6, 9, 27):
        weights["conv_first.weight"] = torch.zeros(8, channels, 3, 3)
        spec = identify(weights, source="x", sha256=SHA).spec
        assert (spec.in_channels, spec.out_channels, spec.unshuffle) == (channels, 3, 1)


def test_a_fold_larger_than_the_net_enlarges_is_refused(named: Named) -> None:
    weights = named(scale=2)
    weights["conv_first.weight"] = torch.zeros(8, 48, 3, 3)
    _refused(weights, "pixel-unshuffle by 4")


def test_an_old_net_for_x3_is_read_when_it_is_told(named: Named) -> None:
    """ESRGAN's first code had x3: one resize, as x2 has, so that names and shapes are the same."""
    old = named("esrgan-old", scale=2)
    assert identify(old, source="x", sha256=SHA).spec.scale == 2
    assert identify(old, source="x", sha256=SHA, scale=3).spec.scale == 3
    for dialect, scale in (("basicsr", 3), ("esrgan", 3), ("esrgan-old", 4)):
        with pytest.raises(_errors.CheckpointError, match=f"enlarges by 2.*not by {scale}"):
            identify(named(dialect, scale=2), source="x", sha256=SHA, scale=scale)


def _refused(weights: Weights, told: str, kind: type[Exception] = _errors.CheckpointError) -> None:
    with pytest.raises(kind, match=told) as caught:
        identify(weights, source="net.pth", sha256=SHA)
    message = str(caught.value)
    assert message.startswith("net.pth")
    assert "\n" not in message
    if kind is _errors.CheckpointError:
        assert not isinstance(caught.value, UnknownFamilyError)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("basicsr", "esrgan", "mixes dialects.*BasicSR.*ESRGAN"),
        ("basicsr", "esrgan-old", "mixes dialects.*BasicSR.*old ESRGAN"),
        ("esrgan", "esrgan-old", "mixes dialects.*ESRGAN.*old ESRGAN"),
    ],
)
def test_mixed_dialects_are_refused_with_a_key_of_each(
    first: str, second: str, told: str, named: Named
) -> None:
    one, other = named(first), named(second)
    _refused(one | other, told)
    # One renamed block is enough, and so is one renamed convolution outside the blocks.
    _refused(dict(list(one.items())[:-8]) | dict(list(other.items())[-8:]), "mixes dialects")


def test_a_foreign_last_layer_is_a_mixed_dialect(named: Named) -> None:
    """conv_last is BasicSR's and ESRGAN's name alike: beside old names it belongs to neither."""
    both = named("esrgan-old") | {"conv_last.weight": named("esrgan")["conv_last.weight"]}
    _refused(both, "mixes dialects.*'conv_last.weight'.*'model.0.weight'")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_missing_tensor_is_found_and_named(dialect: str, named: Named) -> None:
    weights = named(dialect, blocks=1)
    for key in weights:
        rest = {name: value for name, value in weights.items() if name != key}
        with pytest.raises(_errors.CheckpointError) as caught:
            identify(rest, source="x", sha256=SHA)
        # Of the flat old sequence without its last layer nothing says which number it had.
        if not (dialect in {"esrgan-old", "kair"} and key.startswith("model.10.")):
            assert repr(key) in str(caught.value)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("block", [0, 3])
def test_a_missing_block_is_named_by_its_number(dialect: str, block: int, named: Named) -> None:
    weights = named(dialect, blocks=6)
    rest = {name: value for name, value in weights.items() if f".{block}.rdb" not in name.lower()}
    assert len(rest) == len(weights) - 30
    _refused(rest, f"no block {block}")


def test_the_last_block_is_missed_where_the_names_tell(named: Named) -> None:
    """Old ESRGAN numbers the trunk's convolution after the blocks; the other names stay consistent."""
    weights = named("esrgan-old", blocks=6)
    _refused({name: value for name, value in weights.items() if ".sub.5.RDB" not in name}, "no block 5")


def test_upsampling_with_a_gap_or_more_of_it_than_any_net_has_is_refused(named: Named) -> None:
    weights = named(scale=8)
    _refused({name: value for name, value in weights.items() if "conv_up2" not in name}, "no 'conv_up2'")
    weights = named(scale=16)
    weights |= {f"conv_up5.{kind}": weights[f"conv_up4.{kind}"] for kind in ("weight", "bias")}
    _refused(weights, "2\\^5")


def test_pixel_shuffle_upsampling_of_the_old_code_is_refused(named: Named) -> None:
    """Its convolutions stand at 2 and 5: taken for the others they would make a wrong picture."""
    old = named("esrgan-old")
    for kind in ("weight", "bias"):
        old[f"model.2.{kind}"] = old.pop(f"model.3.{kind}").repeat_interleave(4, 0)
        old[f"model.5.{kind}"] = old.pop(f"model.6.{kind}").repeat_interleave(4, 0)
    _refused(old, "pixel-shuffle")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("conv_first.weight", (8, 3, 3)),
        ("conv_first.weight", (8, 3, 5, 5)),
        ("conv_first.weight", (8, 0, 3, 3)),
        ("conv_first.bias", (8, 1)),
        ("conv_first.bias", ()),
        ("body.0.rdb1.conv1.weight", (4,)),
        ("body.1.rdb3.conv5.weight", (8, 23, 3, 3)),
        ("conv_body.weight", (8, 9, 3, 3)),
        ("conv_last.weight", (3, 8, 1, 1)),
        ("conv_last.bias", (4,)),
    ],
)
def test_wrong_ranks_and_shapes_are_refused_with_the_key(
    key: str, shape: tuple[int, ...], named: Named
) -> None:
    weights = named() | {key: torch.zeros(shape)}
    _refused(weights, f"{key!r} has the shape")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_with_the_files_own_key(value: float, named: Named) -> None:
    old = named("esrgan-old")
    old["model.1.sub.1.RDB2.conv3.0.weight"][0, 1, 2, 0] = value
    _refused(old, "'model.1.sub.1.RDB2.conv3.0.weight' holds 1 values of")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.full((8,), 1e300, dtype=torch.float64), "holds 8"),
        (torch.zeros(8, dtype=torch.int64), "is int64"),
    ],
)
def test_numbers_that_float32_cannot_hold_are_no_weights(value: Tensor, told: str, named: Named) -> None:
    """A double beyond its range would become an infinity, and an index a weight."""
    _refused(named() | {"conv_hr.bias": value}, f"'conv_hr.bias' {told}")


def test_esrgan_plus_is_called_by_its_name(named: Named) -> None:
    for dialect, block in (("esrgan-old", "model.1.sub.0.RDB1"), ("basicsr", "body.0.rdb1")):
        plus = named(dialect) | {f"{block}.conv1x1.weight": torch.zeros(4, 8, 1, 1)}
        _refused(plus, r"ESRGAN\+", UnknownFamilyError)


def test_a_relative_of_rrdbnet_is_not_taken_for_one(named: Named) -> None:
    """MM-RealSR adds a modulation beside the same blocks: left out, it would make another picture."""
    weights = named() | {"de_net.conv.weight": torch.zeros(3), "am_list.0": torch.zeros(3)}
    _refused(weights, "2 tensors that such a net does not.*'de_net.conv.weight'", UnknownFamilyError)


def test_other_families_are_refused_with_the_keys_seen_and_the_families_known() -> None:
    srresnet = {
        f"{name}.weight": torch.zeros(4, 4, 3, 3)
        for name in ("conv_first", "body.0.conv1", "body.0.conv2", "upconv1", "conv_hr", "conv_last")
    }
    _refused(srresnet, "seen: 'conv_first.weight'.* and 1 more.*known: RRDBNet.*Compact", UnknownFamilyError)
    _refused({"a": torch.zeros(1)}, "seen: 'a';", UnknownFamilyError)
