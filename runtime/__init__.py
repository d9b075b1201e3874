"""Pictures in, larger pictures out: sessions, tiling, picture files and the Upscaler.

Importing this package loads numpy at most; ONNX Runtime and Pillow are loaded by what needs them.

Where to look: ``_upscaler`` is what pipelines embed. Under it lie ``_crew``, ``_job`` and ``_lane`` (the
queue and who works it off), ``_cutting``, ``_tiling``, ``_auto_tile`` and ``_seams`` (tiles),
``_tile_runner``, ``_samples``, ``_guard`` and ``_watchdog`` (one batch, and whether it is a picture).
``_session`` is the protocol; ``_session_onnx`` with ``_ort_*`` and ``_session_plan`` with ``_plan_*`` and
``_slot_plan`` answer to it, over ``_cuda*`` and ``_foreign`` (the device, and arrays of other libraries).
``_trust`` and ``_golden`` decide what may be loaded. ``_picture*`` and its formats are files.
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime._faults import DeviceLostError, OutOfMemoryError
    from esrgan_deploy.runtime._open_session import default_model, open_session
    from esrgan_deploy.runtime._output import open_output
    from esrgan_deploy.runtime._picture import Picture
    from esrgan_deploy.runtime._picture_reader import read_picture
    from esrgan_deploy.runtime._picture_writer import write_picture
    from esrgan_deploy.runtime._session import Made, Session, SessionInfo, SessionOptions, Slot
    from esrgan_deploy.runtime._tiling import Span, Tile, TilePlan, plan_tiles
    from esrgan_deploy.runtime._upscaler import Upscaler, UpscalerStats

__all__ = [
    "DeviceLostError",
    "Made",
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
        "_faults": ("DeviceLostError", "OutOfMemoryError"),
        "_open_session": ("default_model", "open_session"),
        "_output": ("open_output",),
        "_picture": ("Picture",),
        "_picture_reader": ("read_picture",),
        "_picture_writer": ("write_picture",),
        "_session": ("Made", "Session", "SessionInfo", "SessionOptions", "Slot"),
        "_tiling": ("Span", "Tile", "TilePlan", "plan_tiles"),
        "_upscaler": ("Upscaler", "UpscalerStats"),
    },
)
