"""From activations to scales."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esrgan_deploy._errors import ExportError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.nets import LARGEST, LEAST_STEP, Layer, RRDBNet, SRVGGNetCompact, layers
from esrgan_deploy.export.quantisation import rounded, tensor_of
from esrgan_deploy.export.quantisation._options import METHODS
from esrgan_deploy.export.quantisation.calibration import activation_steps, low_high, observe
from esrgan_deploy.export.quantisation.calibration._activation_scales import BINS, Observed, step

CONV = Layer(name="0", group="0", unit="0", place="tail", macs=1.0)
WAYS = [(kind, method) for kind in ("int8", "fp8") for method in METHODS]

Array = npt.NDArray[np.float32]


def pictures(count: int = 3, seed: int = 0, channels: int = 3) -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (1, 24, 24 + number, channels), np.uint8) for number in range(count)]


def observed_of(*parts: Array) -> Observed:
    """Observe numbers, by way of a net of one convolution."""
    conv = torch.nn.Conv2d(1, 1, 1)
    net = _Feeds(conv, [torch.from_numpy(np.array(part, np.float32).reshape(1, 1, 1, -1)) for part in parts])
    return observe(net, [CONV], pictures(len(parts)))["0"]


class _Feeds(torch.nn.Sequential):
    """Gives its convolution other numbers than the picture."""

    def __init__(self, conv: torch.nn.Conv2d, parts: list[torch.Tensor]) -> None:
        super().__init__(conv)
        self.parts = parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.parts[x.shape[3] - 24])  # type: ignore[no-any-return]


def gaussian(count: int = 200_000, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def error_of(x: Array, value: float, kind: str, power: float = 2.4) -> float:
    numbers = torch.from_numpy(x)
    error = rounded(numbers, torch.tensor(value, dtype=torch.float32), kind) - numbers
    return float((error.double().abs() ** power).mean())


def rrdb(rrdb_spec: Callable[..., ModelSpec], **fields: int) -> tuple[RRDBNet, ModelSpec]:
    spec = rrdb_spec(**fields)
    torch.manual_seed(0)
    return RRDBNet(spec).eval(), spec


def inputs_of(net: torch.nn.Module, seen: list[npt.NDArray[np.uint8]]) -> dict[str, list[torch.Tensor]]:
    """What each convolution reads, by its name."""
    found: dict[str, list[torch.Tensor]] = {}
    handles = [
        conv.register_forward_pre_hook(
            lambda _, given, name=name: found.setdefault(name, []).append(given[0])
        )
        for name, conv in net.named_modules()
        if isinstance(conv, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        for picture in seen:
            net(tensor_of(picture))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_every_group_of_an_rrdb_is_seen_as_it_is(rrdb_spec: Callable[..., ModelSpec], unshuffle: int) -> None:
    """A scale would be that of another tensor, or miss the features that a dense block makes."""
    net, spec = rrdb(rrdb_spec, unshuffle=unshuffle, scale=4 // unshuffle, blocks=1)
    seen = [picture[:, :, :24] for picture in pictures()]
    found = observe(net, layers(spec), seen)
    whole = inputs_of(net, seen)
    assert set(found) == {layer.group for layer in layers(spec)}
    for group, one in found.items():
        name = f"{group}.conv5" if "rdb" in group else group
        values = torch.cat(whole[name]).double()
        assert one.low == pytest.approx(float(values.min()))
        assert one.high == pytest.approx(float(values.max()))
        # Each tensor once: a block's own input is read by all five convolutions.
        assert one.counts.sum() == values.numel()
        expected = np.histogram(values.abs().numpy(), BINS, (0, one.top))[0]
        assert np.array_equal(one.counts, expected)
    assert not any(conv._forward_pre_hooks for conv in net.modules())


def test_every_group_of_a_compact_net_is_seen() -> None:
    """An SRVGGNetCompact could not be calibrated."""
    spec = ModelSpec(
        architecture="srvggnetcompact", scale=2, in_channels=1, out_channels=1, features=8, blocks=2, growth=0,
        source_sha256="0" * 64,
    )  # fmt: skip
    torch.manual_seed(0)
    net = SRVGGNetCompact(spec).eval()
    found = observe(net, layers(spec), pictures(channels=1))
    assert list(found) == ["body.0", "body.2", "body.4", "body.6"]
    assert (found["body.0"].low, found["body.0"].high) == (0.0, 1.0)


def test_the_order_of_pictures_changes_nothing() -> None:
    """Scales would depend on the order in which a folder is read."""
    parts = [gaussian(3000, seed) * scale for seed, scale in enumerate((0.03, 40.0, 1.0))]
    one, two = observed_of(*parts), observed_of(*parts[::-1])
    assert np.array_equal(one.counts, two.counts)
    assert one.top == two.top == 2.0 ** np.ceil(np.log2(one.largest))
    assert np.array_equal(one.counts, np.histogram(np.abs(np.concatenate(parts)), BINS, (0, one.top))[0])


def test_no_picture_is_refused(rrdb_spec: Callable[..., ModelSpec]) -> None:
    """Scales would be made of nothing."""
    net, spec = rrdb(rrdb_spec)
    with pytest.raises(ExportError, match="no picture"):
        observe(net, layers(spec), [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_named(rrdb_spec: Callable[..., ModelSpec], value: float) -> None:
    """A broken checkpoint would end in scales of infinity, or in a picture of nothing."""
    net, spec = rrdb(rrdb_spec, blocks=1)
    with torch.no_grad():
        net.body[0].rdb2.conv5.bias[0] = value
    with pytest.raises(ExportError, match=r"body\.0\.rdb3 holds"):
        observe(net, layers(spec), pictures())
    assert not any(conv._forward_pre_hooks for conv in net.modules())


@pytest.mark.parametrize(("kind", "method"), WAYS)
def test_zeros_take_the_least_step(kind: str, method: str) -> None:
    """A dead group would divide by zero."""
    assert step(observed_of(np.zeros(100, np.float32)), kind, method) == LEAST_STEP


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_max_clips_nothing(kind: str) -> None:
    """Values seen in calibration would be clipped by more than the rounding of the step to fp16."""
    x = gaussian()
    found = step(observed_of(x), kind, "max")
    assert found == float(np.float16(np.abs(x).max() / LARGEST[kind]))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("shape", ["gaussian", "uniform", "laplace", "outlier", "half"])
def test_mse_finds_what_brute_force_finds(kind: str, shape: str) -> None:
    """The clip would leave more error than another one."""
    rng = np.random.default_rng(3)
    x = {
        "gaussian": gaussian(60_000),
        "uniform": rng.uniform(-3, 3, 60_000),
        "laplace": rng.laplace(0, 1, 60_000),
        "outlier": np.append(gaussian(60_000), [80.0, -95.0]),
        "half": np.abs(gaussian(60_000)) + 0.7,
    }[shape].astype(np.float32)
    found = error_of(x, step(observed_of(x), kind, "mse"), kind)
    largest = float(np.abs(x).max())
    clips = largest * 2.0 ** np.linspace(-6, 1, 400)
    tried = [error_of(x, clip / LARGEST[kind], kind) for clip in clips]
    # Bins and fp16 cost a hundredth at most.
    assert found <= min(tried) * 1.01, (found / min(tried), clips[int(np.argmin(tried))] / largest)


def test_mse_clips_a_gaussian_a_little_beyond_the_least_square() -> None:
    """That is known, 3.92 deviations for eight bits (Banner et al., 2019); the higher power clips less."""
    found = step(observed_of(gaussian(1_000_000)), "int8", "mse") * 127
    assert 3.92 < found < 4.4


def test_fp8_keeps_room_above_where_it_costs_nothing() -> None:
    """FP8 would clip pictures that are a little brighter, though an octave more costs no fineness."""
    x = gaussian()
    found = step(observed_of(x), "fp8", "mse")
    assert found * 448 >= 2 * np.abs(x).max()
    # The same place in the octave with nothing to spare is no better.
    assert error_of(x, found, "fp8") <= 1.002 * error_of(x, found / 2, "fp8")


def test_zeros_among_the_values_change_nothing() -> None:
    """A ReLU, or a black border, would have all levels spent on what every scale holds exactly."""
    x = np.random.default_rng(6).laplace(0, 1, 100_000).astype(np.float32)
    with_zeros = np.append(x, np.zeros(900_000, np.float32))
    assert step(observed_of(with_zeros), "int8", "mse") == step(observed_of(x), "int8", "mse")


def test_an_unknown_method_is_refused() -> None:
    """A misspelt method would choose another one in silence."""
    with pytest.raises(ExportError, match=r"'minmax'.*max, mse"):
        step(observed_of(gaussian(100)), "int8", "minmax")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    power=st.integers(-6, 6),
    ways=st.sampled_from(WAYS),
)
def test_twice_the_values_take_twice_the_step(seed: int, power: int, ways: tuple[str, str]) -> None:
    """The scale of a layer would change what its quantisation loses, though the rescaled net is the same."""
    x = np.random.default_rng(seed).laplace(0, 1, 2000).astype(np.float32)
    one = step(observed_of(x), *ways)
    two = step(observed_of(x * np.float32(2.0**power)), *ways)
    # Exact but for steps that fp16 holds as subnormal numbers.
    assert two == pytest.approx(one * 2.0**power, rel=1e-6, abs=2.0**-25)


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(0.05, 20.0), ways=st.sampled_from(WAYS))
def test_any_factor_keeps_what_is_lost(factor: float, ways: tuple[str, str]) -> None:
    """Where in a power of two the largest value lies would decide what is lost."""
    x = gaussian(20_000)
    scaled = (x * np.float32(factor)).astype(np.float32)
    losses = [
        error_of(values, step(observed_of(values), *ways), ways[0], 2.0) / float((values**2).mean())
        for values in (x, scaled)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_steps_are_given_for_the_groups_that_are_wanted() -> None:
    """A group would go without a scale, or with one of another format."""
    seen = {
        "a": observed_of(gaussian(1000)),
        "b": observed_of(gaussian(1000) * 3),
        "c": observed_of(gaussian(9)),
    }
    found = activation_steps(seen, {"b": "fp8", "a": "int8"}, "max")
    assert found == {"b": step(seen["b"], "fp8", "max"), "a": step(seen["a"], "int8", "max")}
    with pytest.raises(ExportError, match="nothing was observed of d"):
        activation_steps(seen, {"d": "int8"}, "max")


def test_steps_are_what_fp16_holds() -> None:
    """The graph would quantise with another step than the simulation."""
    for seed, way in enumerate(WAYS):
        found = step(observed_of(gaussian(1000, seed)), *way)
        assert found == float(np.float16(found))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.5, 2.0], (0.0, 2.0)), ([-3.0, -1.0], (-3.0, 0.0)), ([-1.5, 4.0], (-1.5, 4.0))],
)
def test_an_asymmetric_range_holds_zero(values: list[float], expected: tuple[float, float]) -> None:
    """The zeros with which borders are padded would be rounded to something else."""
    assert low_high(observed_of(np.array(values, np.float32))) == expected


def test_what_is_observed_does_not_grow_with_the_pictures() -> None:
    """Calibration on many pictures would run out of memory."""

    def size(one: Observed) -> int:
        values: list[Any] = [getattr(one, field.name) for field in dataclasses.fields(one)]
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))

    assert size(observed_of(gaussian(100))) == size(observed_of(*[gaussian(5000, seed) for seed in range(8)]))
