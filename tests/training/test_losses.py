"""The terms of the GAN stage, held against their definitions."""

import argparse

import pytest
import torch
from torch.nn import functional

from esrgan_deploy._errors import CheckpointError, TrainingError
from esrgan_deploy.training.models import UNetDiscriminator, VggDiscriminator, vgg19_features
from esrgan_deploy.training.models._vgg import Vgg19Features
from esrgan_deploy.training.stages._gan import discriminator_loss, generator_loss


def test_the_losses_are_the_equations_of_the_paper():
    """ESRGAN, equations 1 and 2: -E[log D(real, fake)] - E[log(1 - D(fake, real))], halved as its code does."""
    random = torch.Generator().manual_seed(0)
    real, fake = torch.randn(5, 1, generator=random).double(), torch.randn(5, 1, generator=random).double()
    of_real = torch.sigmoid(real - fake.mean())
    of_fake = torch.sigmoid(fake - real.mean())
    wanted = -(of_real.log().mean() + (1 - of_fake).log().mean()) / 2
    torch.testing.assert_close(discriminator_loss(real, fake), wanted)
    wanted = -((1 - of_real).log().mean() + of_fake.log().mean()) / 2
    torch.testing.assert_close(generator_loss(real, fake), wanted)


def test_the_average_is_over_the_batch_and_carries_gradients():
    """Without them the generator learns from its own pictures alone, which is what relativistic means to mend."""
    real = torch.zeros(2, 1)
    fake = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    generator_loss(real, fake).backward()
    up = functional.logsigmoid(fake).mean()
    (alone,) = torch.autograd.grad(-up / 2, fake)
    assert not torch.allclose(fake.grad, alone)


def test_vgg19_has_the_layers_and_names_of_torchvision():
    """Its weights load by name; 20,024,384 are all that its sixteen convolutions have."""
    net = Vgg19Features()
    names = [name for name in net.state_dict() if name.endswith("weight")]
    assert [int(name.split(".")[1]) for name in names] == [
        0,
        2,
        5,
        7,
        10,
        12,
        14,
        16,
        19,
        21,
        23,
        25,
        28,
        30,
        32,
        34,
    ]
    assert sum(value.numel() for value in net.state_dict().values()) == 20_024_384
    features = net(torch.rand(1, 3, 32, 48))
    assert features.shape == (1, 512, 2, 3)
    assert (features < 0).any(), "before the activation there are negative values"


def test_vgg19_sees_what_imagenet_was_normalised_to():
    """Weights trained on normalised pictures mean nothing on others."""
    net = Vgg19Features()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(net(mean), net.features(torch.zeros(1, 3, 32, 32)))
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(net(mean + deviation), net.features(torch.ones(1, 3, 32, 32)))


def test_without_vgg_weights_the_term_is_refused_with_what_to_do(tmp_path, monkeypatch):
    """Skipped in silence, the user would train something else than ESRGAN."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        TrainingError, match=r"vgg19-dcbb9e9d\.pth is not there.*--vgg.*--perceptual-weight 0"
    ):
        vgg19_features(None)
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist"):
        vgg19_features(tmp_path / "none.pth")


def test_vgg_weights_come_from_a_path_or_the_cache_and_others_are_refused(tmp_path, monkeypatch):
    """The classifier of torchvision's file is not needed; a VGG16 has other keys."""
    net = Vgg19Features()
    path = tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir()
    weights = net.state_dict() | {"classifier.0.weight": torch.zeros(1), "features.36.weight": torch.zeros(1)}
    torch.save(weights, path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    x = torch.rand(1, 3, 16, 16)
    for loaded in (vgg19_features(None), vgg19_features(path)):
        torch.testing.assert_close(loaded(x), net(x))
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    del weights["features.34.bias"]
    torch.save(weights, path)
    with pytest.raises(
        CheckpointError, match=r"is no VGG19 of torchvision: 1 missing \(features\.34\.bias\)"
    ):
        vgg19_features(path)


def test_what_is_no_vgg_is_refused_in_a_line_that_does_not_advise_to_execute_it(tmp_path):
    """torch's own reader explains over many lines how to run the file, which may come from anywhere."""
    path = tmp_path / "vgg.pth"
    torch.save(argparse.Namespace(layers=19), path)
    with pytest.raises(CheckpointError, match=r"vgg\.pth holds no named weights \(seen: 'layers'\)$"):
        vgg19_features(path)


def test_the_vgg_discriminator_gives_a_logit_a_picture():
    """Ten convolutions, nine norms and two linear layers: 14,499,401 parameters at 128 pixels and 64 features."""
    net = VggDiscriminator(128, 64)
    assert sum(parameter.numel() for parameter in net.parameters()) == 14_499_401
    assert VggDiscriminator(64, 4)(torch.rand(2, 3, 64, 64)).shape == (2, 1)
    with pytest.raises(
        ValueError, match="an HR crop is 100 pixels wide; the vgg discriminator needs a multiple of 32"
    ):
        VggDiscriminator(100)


def test_the_unet_discriminator_gives_a_logit_a_pixel_and_its_kernels_have_spectral_norm_one():
    """Real-ESRGAN's has 4,376,897 parameters; the norm is what keeps its gradients tame."""
    net = UNetDiscriminator(64)
    assert sum(parameter.numel() for parameter in net.parameters()) == 4_376_897
    small = UNetDiscriminator(8)
    picture = torch.rand(2, 3, 32, 48)
    for _ in range(30):
        assert small(picture).shape == (2, 1, 32, 48)
    normed = [
        small.down1,
        small.down2,
        small.down3,
        small.up1,
        small.up2,
        small.up3,
        small.conv1,
        small.conv2,
    ]
    for conv in normed:
        norm = torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2).detach()
        assert abs(float(norm) - 1.0) < 0.05
