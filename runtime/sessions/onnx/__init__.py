"""ONNX Runtime as a session."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.sessions.onnx._adapter import AdaptedGraph as AdaptedGraph
    from esrgan_deploy.runtime.sessions.onnx._adapter import Ends as Ends
    from esrgan_deploy.runtime.sessions.onnx._adapter import measured_ends as measured_ends
    from esrgan_deploy.runtime.sessions.onnx._file import missing_data as missing_data
    from esrgan_deploy.runtime.sessions.onnx._session import OnnxSession as OnnxSession

__getattr__, __dir__, __all__ = handed_on(__name__)
