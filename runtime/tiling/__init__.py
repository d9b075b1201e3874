"""How a picture is cut, at which halo no seam shows, and one batch of tiles."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.tiling._batch import fill as fill
    from esrgan_deploy.runtime.tiling._batch import network_to_pixels as network_to_pixels
    from esrgan_deploy.runtime.tiling._batch import peak_of as peak_of
    from esrgan_deploy.runtime.tiling._batch import pixels_to_network as pixels_to_network
    from esrgan_deploy.runtime.tiling._batch import run_batch as run_batch
    from esrgan_deploy.runtime.tiling._choice import SEAM_LEVELS as SEAM_LEVELS
    from esrgan_deploy.runtime.tiling._choice import TileChoice as TileChoice
    from esrgan_deploy.runtime.tiling._choice import choose_tiling as choose_tiling
    from esrgan_deploy.runtime.tiling._choice import store_tiling as store_tiling
    from esrgan_deploy.runtime.tiling._cutter import cutter_for as cutter_for
    from esrgan_deploy.runtime.tiling._drawn import drawn_picture as drawn_picture
    from esrgan_deploy.runtime.tiling._plan import EDGES as EDGES
    from esrgan_deploy.runtime.tiling._plan import Edge as Edge
    from esrgan_deploy.runtime.tiling._plan import Span as Span
    from esrgan_deploy.runtime.tiling._plan import Tile as Tile
    from esrgan_deploy.runtime.tiling._plan import TileOptions as TileOptions
    from esrgan_deploy.runtime.tiling._plan import TilePlan as TilePlan
    from esrgan_deploy.runtime.tiling._plan import plan_tiles as plan_tiles
    from esrgan_deploy.runtime.tiling._seams import HALOS as HALOS
    from esrgan_deploy.runtime.tiling._seams import NotMeasurableError as NotMeasurableError
    from esrgan_deploy.runtime.tiling._seams import SeamCurve as SeamCurve
    from esrgan_deploy.runtime.tiling._seams import measure_seams as measure_seams
    from esrgan_deploy.runtime.tiling._strips import TAIL as TAIL
    from esrgan_deploy.runtime.tiling._strips import Placed as Placed
    from esrgan_deploy.runtime.tiling._strips import Strips as Strips
    from esrgan_deploy.runtime.tiling._strips import run_strips as run_strips

__getattr__, __dir__, __all__ = handed_on(__name__)
