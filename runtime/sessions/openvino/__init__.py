"""OpenVINO as a session: Intel's and other processors, and Intel's GPUs and NPUs."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.sessions.openvino._device import Target as Target
    from esrgan_deploy.runtime.sessions.openvino._device import arithmetic_of as arithmetic_of
    from esrgan_deploy.runtime.sessions.openvino._device import is_openvino as is_openvino
    from esrgan_deploy.runtime.sessions.openvino._device import processor_name as processor_name
    from esrgan_deploy.runtime.sessions.openvino._session import OpenVinoSession as OpenVinoSession

__getattr__, __dir__, __all__ = handed_on(__name__)
