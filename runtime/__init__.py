"""Pictures in, larger pictures out: sessions, tiling, picture files and the Upscaler.

Importing this package loads nothing; its names load numpy, and ONNX Runtime or Pillow where they are used.
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy._errors import DeviceLostError as DeviceLostError
    from esrgan_deploy._errors import OutOfMemoryError as OutOfMemoryError
    from esrgan_deploy.runtime._upscaler import Upscaler as Upscaler
    from esrgan_deploy.runtime._upscaler import UpscalerStats as UpscalerStats
    from esrgan_deploy.runtime.jobs import Job as Job
    from esrgan_deploy.runtime.jobs import JobEvent as JobEvent
    from esrgan_deploy.runtime.jobs import JobItem as JobItem
    from esrgan_deploy.runtime.jobs import JobResult as JobResult
    from esrgan_deploy.runtime.pictures import Picture as Picture
    from esrgan_deploy.runtime.pictures import open_output as open_output
    from esrgan_deploy.runtime.pictures import read_picture as read_picture
    from esrgan_deploy.runtime.pictures import write_picture as write_picture
    from esrgan_deploy.runtime.sessions import BatchOutput as BatchOutput
    from esrgan_deploy.runtime.sessions import Session as Session
    from esrgan_deploy.runtime.sessions import SessionInfo as SessionInfo
    from esrgan_deploy.runtime.sessions import SessionOptions as SessionOptions
    from esrgan_deploy.runtime.sessions import Slot as Slot
    from esrgan_deploy.runtime.sessions import default_model as default_model
    from esrgan_deploy.runtime.sessions import open_session as open_session
    from esrgan_deploy.runtime.tiling import Span as Span
    from esrgan_deploy.runtime.tiling import Tile as Tile
    from esrgan_deploy.runtime.tiling import TilePlan as TilePlan
    from esrgan_deploy.runtime.tiling import plan_tiles as plan_tiles

__getattr__, __dir__, __all__ = handed_on(__name__)
