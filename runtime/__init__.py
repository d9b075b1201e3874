"""Pictures in, larger pictures out: sessions, tiling, picture files and the Upscaler.

Importing this package loads nothing; its names load numpy, and ONNX Runtime or Pillow where they are used.
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime._upscaler import Upscaler, UpscalerStats
    from esrgan_deploy.runtime.device import DeviceLostError, OutOfMemoryError
    from esrgan_deploy.runtime.pictures import Picture, open_output, read_picture, write_picture
    from esrgan_deploy.runtime.sessions import (
        BatchOutput,
        Session,
        SessionInfo,
        SessionOptions,
        Slot,
        default_model,
        open_session,
    )
    from esrgan_deploy.runtime.tiling import Span, Tile, TilePlan, plan_tiles

__all__ = [
    "BatchOutput",
    "DeviceLostError",
    "OutOfMemoryError",
    "Picture",
    "Session",
    "SessionInfo",
    "SessionOptions",
    "Slot",
    "Span",
    "Tile",
    "TilePlan",
    "Upscaler",
    "UpscalerStats",
    "default_model",
    "open_output",
    "open_session",
    "plan_tiles",
    "read_picture",
    "write_picture",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_upscaler": ("Upscaler", "UpscalerStats"),
        "device": ("DeviceLostError", "OutOfMemoryError"),
        "pictures": ("Picture", "open_output", "read_picture", "write_picture"),
        "sessions": (
            "BatchOutput",
            "Session",
            "SessionInfo",
            "SessionOptions",
            "Slot",
            "default_model",
            "open_session",
        ),
        "tiling": ("Span", "Tile", "TilePlan", "plan_tiles"),
    },
)
