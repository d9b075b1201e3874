"""ONNX Runtime as a session."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.sessions.onnx._adapter import AdaptedGraph, Ends, measured_ends
    from esrgan_deploy.runtime.sessions.onnx._file import missing_data
    from esrgan_deploy.runtime.sessions.onnx._session import OnnxSession

__all__ = ["AdaptedGraph", "Ends", "OnnxSession", "measured_ends", "missing_data"]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_adapter": ("AdaptedGraph", "Ends", "measured_ends"),
        "_file": ("missing_data",),
        "_session": ("OnnxSession",),
    },
)
