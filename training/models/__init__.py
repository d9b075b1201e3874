"""Generator, discriminators, features of VGG, fake quantisation."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.training.models._discriminators import UNetDiscriminator as UNetDiscriminator
    from esrgan_deploy.training.models._discriminators import VggDiscriminator as VggDiscriminator
    from esrgan_deploy.training.models._fake_quant import FakeQuantisation as FakeQuantisation
    from esrgan_deploy.training.models._generator import differing_keys as differing_keys
    from esrgan_deploy.training.models._generator import generator as generator
    from esrgan_deploy.training.models._generator import generator_of as generator_of
    from esrgan_deploy.training.models._generator import interpolate as interpolate
    from esrgan_deploy.training.models._generator import recompute_blocks as recompute_blocks
    from esrgan_deploy.training.models._generator import spec_of as spec_of
    from esrgan_deploy.training.models._generator import teacher as teacher
    from esrgan_deploy.training.models._vgg import vgg19_features as vgg19_features

__getattr__, __dir__, __all__ = handed_on(__name__)
