"""The generator of a training."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from esrgan_deploy._errors import CheckpointError, TrainingError
from esrgan_deploy.export.nets import RRDBNet
from esrgan_deploy.training.models import generator, interpolate, recompute_blocks, teacher
from esrgan_deploy.training.stages import learning_rate
from esrgan_deploy.training.stages._psnr import averaged


def _gradients(net, picture):
    net(picture).square().mean().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def test_recomputed_blocks_give_the_same_gradients_to_the_bit(small):
    """Less memory must not cost exactness."""
    picture = torch.rand(2, 3, 9, 11)
    plain = _gradients(generator(small(blocks=3)), picture)
    net = generator(small(blocks=3))
    recompute_blocks(net)
    for name, gradient in _gradients(net, picture).items():
        assert torch.equal(gradient, plain[name]), name


def test_recomputed_blocks_keep_less(small):
    """What is kept for the backward pass must not grow with the layers inside a block."""

    def kept(net):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            net(torch.rand(2, 3, 16, 16))
        return sum(sizes)

    net = generator(small(blocks=6, scale=1))
    whole = kept(net)
    recompute_blocks(net)
    assert kept(net) < whole / 3


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_training_starts_from_an_interpolation_of_the_picture(small, scale):
    """From a black picture thousands of steps go into learning to copy."""
    smooth = functional.interpolate(torch.rand(1, 3, 4, 4), size=(24, 24), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        made = generator(small(scale=scale, features=32, growth=16, blocks=2))(smooth)
    wanted = functional.interpolate(smooth, scale_factor=float(scale), mode="bilinear")
    # The border is darker: zeros lie outside.
    inside = slice(4 * scale, -4 * scale)
    assert (made - wanted)[..., inside, inside].abs().mean() < 0.1


def test_compact_starts_from_the_nearest_neighbour(small):
    """The same for the other architecture."""
    picture = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        made = generator(small(architecture="srvggnetcompact", blocks=2))(picture)
    assert (made - functional.interpolate(picture, scale_factor=4.0, mode="nearest")).abs().mean() < 0.2


def test_the_seed_decides_the_weights(small):
    """A training can be made again."""
    one, same, other = (generator(small(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv_first.weight"], other["conv_first.weight"])


def test_a_start_of_another_architecture_is_refused_with_the_keys(small, tmp_path):
    """Loaded in part it would be neither net."""
    path = tmp_path / "start.pth"
    torch.save({"params_ema": generator(small(blocks=2)).state_dict()}, path)
    with pytest.raises(
        CheckpointError, match=r"another architecture.*30 too many \(body\.1\.rdb1\.conv1\.bias"
    ):
        generator(small(start=path))
    with pytest.raises(CheckpointError, match=r"of another shape .*conv_first\.weight"):
        generator(small(start=path, blocks=2, features=16))
    assert torch.equal(generator(small(start=path, blocks=2)).conv_hr.bias, torch.zeros(8))


def test_a_scale_that_the_architecture_has_not_is_refused(small):
    """One line instead of a traceback out of the net."""
    with pytest.raises(TrainingError, match="scale is 5; an RRDBNet enlarges by"):
        generator(small(scale=5))


def test_a_teacher_of_another_scale_is_refused(small, tmp_path):
    """Its pictures would have another size."""
    path = tmp_path / "teacher.pth"
    torch.save(generator(small(scale=2)).state_dict(), path)
    with pytest.raises(TrainingError, match="enlarges by 2 and scale is 4"):
        teacher(small(teacher=path))
    assert isinstance(teacher(small(teacher=path, scale=2)), RRDBNet)
    assert teacher(small()) is None


def test_the_average_follows_its_formula():
    """average += (1 - decay) (weights - average), with the smaller decay at the beginning."""
    net = torch.nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.0)
    average = averaged(net, 0.5)
    wanted = 0.0
    for update in range(1, 20):
        net.weight.data.fill_(float(update))
        average.update_parameters(net)
        decay = min(0.5, (1 + update) / (10 + update))
        wanted = decay * wanted + (1 - decay) * update
        assert average.module.weight.item() == pytest.approx(wanted, rel=1e-5)


def test_the_average_of_an_older_state_is_gone_on_with():
    """A training of weeks must not begin anew because of how its state was kept."""
    net = torch.nn.Linear(1, 1, bias=False)
    average = averaged(net, 0.5)
    average.load_state_dict({"updates": 3, "weights": {"weight": torch.tensor([[2.0]])}})
    net.weight.data.fill_(0.0)
    average.update_parameters(net)
    assert average.module.weight.item() == pytest.approx(2.0 * 5 / 14)


def test_interpolation_mixes_weight_by_weight(small, tmp_path):
    """ESRGAN, section 3.4."""
    from safetensors.torch import load_file

    nets = [generator(small(seed=seed)).state_dict() for seed in (1, 2)]
    for name, weights in zip(("psnr", "gan"), nets, strict=True):
        torch.save({"params": weights}, tmp_path / f"{name}.pth")
    output = tmp_path / "mixed.safetensors"
    interpolate(tmp_path / "psnr.pth", tmp_path / "gan.pth", output, alpha=0.2)
    mixed = load_file(output)
    for name, value in nets[0].items():
        torch.testing.assert_close(mixed[name], 0.8 * value + 0.2 * nets[1][name])
    for alpha, name, message in (
        (1.5, "x.safetensors", "alpha is 1.5"),
        (0.5, "mixed.safetensors", "exists"),
        (0.5, "x.pth", "name it .*x.safetensors"),
    ):
        with pytest.raises(TrainingError, match=message):
            interpolate(tmp_path / "psnr.pth", tmp_path / "gan.pth", tmp_path / name, alpha=alpha)


def test_the_schedules(small):
    """The rate at the ends, in the middle and at the milestones."""

    def rate(step, **keys):
        return learning_rate(
            step, small(**({"learning_rate": 1.0, "schedule": "cosine", "steps": 100} | keys))
        )

    assert [rate(0), rate(50), rate(100)] == pytest.approx([1.0, 0.5, 0.0])
    assert [rate(0, warmup=4), rate(3, warmup=4)] == pytest.approx([0.25, rate(3)])
    steps = {"schedule": "multistep", "milestones": (10, 20), "gamma": 0.1}
    assert [rate(step, **steps) for step in (9, 10, 19, 20)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_the_configuration_is_frozen(small):
    """A training that changed its own keys could not be told from its record."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().steps = 3
