"""Cross-layer equalisation."""

import pytest
import torch

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.graphs import Recipe
from esrgan_deploy.export.nets import RRDBNet, SRVGGNetCompact, rescalings
from esrgan_deploy.export.quantisation import apply_parameters
from esrgan_deploy.export.quantisation.weights import factors, noise_gains, rescaled


@pytest.fixture(params=["rrdbnet", "srvggnetcompact"])
def net(request, rrdb_spec, rrdb_weights, compact_weights):
    if request.param == "rrdbnet":
        spec = rrdb_spec(blocks=1)
        module = RRDBNet(spec)
        module.load_state_dict(rrdb_weights(spec))
    else:
        spec = ModelSpec(
            architecture="srvggnetcompact", scale=4, in_channels=3, out_channels=3, features=8, blocks=2,
            growth=0, unshuffle=1, size_multiple=1, source_sha256="0" * 64,
        )  # fmt: skip
        module = SRVGGNetCompact(spec)
        module.load_state_dict(compact_weights())
    return module.eval().requires_grad_(False), spec


def _pictures(count=2, size=12):
    random = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, size, size, generator=random) for _ in range(count)]


def _with(module, parameters):
    apply_parameters(module, Recipe(formats={}, activations={}, weights={}, parameters=parameters))


def test_any_factors_leave_the_function_as_it_is(net):
    """A factor that some reader or maker of a channel misses changes the picture."""
    module, spec = net
    random = torch.Generator().manual_seed(2)
    sets = rescalings(spec)
    picture = _pictures(1)[0]
    before = module(picture)
    found = [torch.exp2(torch.rand(known.channels, generator=random) * 4 - 2) for known in sets]
    parameters = rescaled(module, sets, found)
    # Every convolution but the last has its bias divided.
    assert (
        sum(name.endswith(".bias") for name in parameters)
        == len([name for name in module.state_dict() if name.endswith(".bias")]) - 1
    )
    _with(module, parameters)
    error = float((module(picture) - before).abs().max() / before.abs().max())
    assert error < 1e-5, error


def test_equalised_channels_are_flatter_and_the_function_the_same(net):
    """Factors that do not flatten the ranges, or that change the picture, are of no use."""
    module, spec = net
    sets = rescalings(spec)
    random = torch.Generator().manual_seed(3)
    spread = [torch.exp2(torch.rand(known.channels, generator=random) * 6 - 3) for known in sets]
    _with(module, rescaled(module, sets, spread))
    pictures = _pictures()
    before, observed = module(pictures[0]), noise_gains(module, spec, pictures)
    _with(module, rescaled(module, sets, factors(module, spec, observed, kind="int8")))
    after = noise_gains(module, spec, pictures)
    error = float((module(pictures[0]) - before).abs().max() / before.abs().max())
    assert error < 1e-5, error
    groups = [
        group for group in observed.largest if group not in {"conv_first", "conv_last", "body.0", "body.6"}
    ]
    flatter = [
        float((values[group].max() / values[group].clamp_min(1e-6)).log().mean())
        for values in (observed.largest, after.largest)
        for group in groups
    ]
    assert sum(flatter[len(groups) :]) < 0.7 * sum(flatter[: len(groups)]), flatter


def test_channels_that_nothing_quantised_reads_keep_their_scale(net):
    """The last convolution stays in half precision: its inputs have nothing to gain."""
    module, spec = net
    found = factors(module, spec, noise_gains(module, spec, _pictures()), kind="int8")
    assert bool((found[-1] == 1.0).all())
    assert not bool((found[0] == 1.0).all())


def test_observing_leaves_no_trace(net):
    """A net whose weights ask for gradients afterwards, or that keeps hooks, is another net."""
    module, spec = net
    noise_gains(module, spec, _pictures(1))
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_energies_are_those_of_small_noise(net):
    """Factors weigh errors by what they do to the picture; a wrong weight equalises the wrong channels."""
    module, spec = net
    picture = _pictures(1)[0]
    name = "conv_body" if spec.architecture == "rrdbnet" else "body.2"
    # The estimate of one draw of signs is noisy: many of the same picture.
    observed = noise_gains(module, spec, [picture] * 6)
    conv, before = module.get_submodule(name), module(picture)
    random = torch.Generator().manual_seed(4)
    energies = []
    for _ in range(40):
        noise = [1e-4 * torch.randn(1, conv.in_channels, 12, 12, generator=random)]
        hook = conv.register_forward_pre_hook(lambda _m, args, noise=noise: (args[0] + noise[0],))
        energies.append(float((module(picture) - before).square().sum()) / 1e-8)
        hook.remove()
    measured = sum(energies) / len(energies)
    predicted = float(observed.inputs[name].sum()) / 6
    assert predicted == pytest.approx(measured, rel=0.3)
