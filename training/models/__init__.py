"""Generator, discriminators, features of VGG, fake quantisation."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.training.models._discriminators import UNetDiscriminator, VggDiscriminator
    from esrgan_deploy.training.models._fake_quant import FakeQuantisation
    from esrgan_deploy.training.models._generator import (
        differing_keys,
        generator,
        generator_of,
        interpolate,
        recompute_blocks,
        spec_of,
        teacher,
    )
    from esrgan_deploy.training.models._vgg import vgg19_features

__all__ = [
    "FakeQuantisation",
    "UNetDiscriminator",
    "VggDiscriminator",
    "differing_keys",
    "generator",
    "generator_of",
    "interpolate",
    "recompute_blocks",
    "spec_of",
    "teacher",
    "vgg19_features",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_discriminators": ("UNetDiscriminator", "VggDiscriminator"),
        "_fake_quant": ("FakeQuantisation",),
        "_generator": (
            "differing_keys",
            "generator",
            "generator_of",
            "interpolate",
            "recompute_blocks",
            "spec_of",
            "teacher",
        ),
        "_vgg": ("vgg19_features",),
    },
)
