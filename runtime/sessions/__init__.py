"""What runs a graph: the protocol, who answers to it, and whether an artefact computes what it should."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.sessions._checks import check_batch as check_batch
    from esrgan_deploy.runtime.sessions._checks import check_output as check_output
    from esrgan_deploy.runtime.sessions._checks import check_size as check_size
    from esrgan_deploy.runtime.sessions._checks import output_shape as output_shape
    from esrgan_deploy.runtime.sessions._golden import verify_golden as verify_golden
    from esrgan_deploy.runtime.sessions._golden import verify_session as verify_session
    from esrgan_deploy.runtime.sessions._health import bad_picture_error as bad_picture_error
    from esrgan_deploy.runtime.sessions._health import judge as judge
    from esrgan_deploy.runtime.sessions._health import spread_of as spread_of
    from esrgan_deploy.runtime.sessions._host_slot import HostSlot as HostSlot
    from esrgan_deploy.runtime.sessions._open import chooses_arithmetic as chooses_arithmetic
    from esrgan_deploy.runtime.sessions._open import default_model as default_model
    from esrgan_deploy.runtime.sessions._open import model_path as model_path
    from esrgan_deploy.runtime.sessions._open import open_session as open_session
    from esrgan_deploy.runtime.sessions._open import widened as widened
    from esrgan_deploy.runtime.sessions._parts import PICTURE as PICTURE
    from esrgan_deploy.runtime.sessions._parts import Block as Block
    from esrgan_deploy.runtime.sessions._parts import PartsInfo as PartsInfo
    from esrgan_deploy.runtime.sessions._protocol import SLOTS_ON_GPU as SLOTS_ON_GPU
    from esrgan_deploy.runtime.sessions._protocol import Array as Array
    from esrgan_deploy.runtime.sessions._protocol import BatchOutput as BatchOutput
    from esrgan_deploy.runtime.sessions._protocol import Parts as Parts
    from esrgan_deploy.runtime.sessions._protocol import PartsSlot as PartsSlot
    from esrgan_deploy.runtime.sessions._protocol import Session as Session
    from esrgan_deploy.runtime.sessions._protocol import SessionInfo as SessionInfo
    from esrgan_deploy.runtime.sessions._protocol import SessionOptions as SessionOptions
    from esrgan_deploy.runtime.sessions._protocol import Slot as Slot

__getattr__, __dir__, __all__ = handed_on(__name__)
