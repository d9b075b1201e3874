"""ONNX Runtime as a session."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.sessions.onnx._adapter import AdaptedGraph as AdaptedGraph
    from esrgan_deploy.runtime.sessions.onnx._adapter import Ends as Ends
    from esrgan_deploy.runtime.sessions.onnx._adapter import measured_ends as measured_ends
    from esrgan_deploy.runtime.sessions.onnx._cuda import element_type as element_type
    from esrgan_deploy.runtime.sessions.onnx._facts import facts_of_graph as facts_of_graph
    from esrgan_deploy.runtime.sessions.onnx._file import metadata_of as metadata_of
    from esrgan_deploy.runtime.sessions.onnx._file import missing_data as missing_data
    from esrgan_deploy.runtime.sessions.onnx._parts import OnnxParts as OnnxParts
    from esrgan_deploy.runtime.sessions.onnx._parts import first_rows as first_rows
    from esrgan_deploy.runtime.sessions.onnx._parts import open_parts as open_parts
    from esrgan_deploy.runtime.sessions.onnx._parts import parts_beside as parts_beside
    from esrgan_deploy.runtime.sessions.onnx._session import OnnxSession as OnnxSession

__getattr__, __dir__, __all__ = handed_on(__name__)
