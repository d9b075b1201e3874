"""The picture features that the perceptual loss compares."""

import re
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from esrgan_deploy._errors import CheckpointError, TrainingError
from esrgan_deploy.export.checkpoints import read_tensors
from esrgan_deploy.training.models._generator import differing_keys

__all__ = ["Vgg19Features", "vgg19_features"]

RELEASE = "vgg19-dcbb9e9d.pth"
"""The file's name in torchvision's cache, its IMAGENET1K_V1 weights."""

_CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)
"""Convolutions up to conv5_4; 0 is a max-pooling."""

_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class Vgg19Features(nn.Module):
    """VGG19 (arXiv:1409.1556) up to conv5_4, before its activation, as ESRGAN's perceptual loss takes it.

    ``(N, 3, H, W)`` RGB 0..1 to ``(N, 512, H/16, W/16)``. Parameters have torchvision's names.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _CHANNELS:
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU()]
            channels = width
        # The last activation is left out: its zeros starve the loss of gradients (section 3.3 of ESRGAN).
        self.features = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of a batch of pictures."""
        return cast(Tensor, self.features((x - self.mean) / self.deviation))


def vgg19_features(path: Path | None) -> Vgg19Features:
    """Return the frozen features with trained weights.

    Args:
        path: A state dict of torchvision's ``vgg19``; None looks into torchvision's cache. Its classifier is
            not needed.

    Raises:
        TrainingError: None was given and the cache holds none; the message says what to do.
        CheckpointError: The file cannot be read or is no VGG19.
    """
    if path is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / RELEASE
        if not path.is_file():
            raise TrainingError(
                f"the perceptual loss needs VGG19's weights and {path} is not there. Give them with --vgg "
                f"{RELEASE} (`python -c 'import torchvision; torchvision.models.vgg19(weights=\"IMAGENET1K_V1\")'` "
                "downloads them into that cache), or leave the term out with --perceptual-weight 0"
            )
    net = Vgg19Features()
    found = {name: value for name, value in read_tensors(path).items() if _index(name) < len(net.features)}
    if differing := differing_keys(net.state_dict(), found):
        raise CheckpointError(f"{path} is no VGG19 of torchvision: {differing}")
    net.load_state_dict(found)
    return net.eval().requires_grad_(False)


def _index(name: str) -> float:
    found = re.match(r"features\.(\d+)\.", name)
    return int(found[1]) if found else float("inf")
