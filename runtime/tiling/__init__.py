"""How a picture is cut, at which halo no seam shows, and one batch of tiles."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.tiling._batch import (
        fill,
        network_to_pixels,
        peak_of,
        pixels_to_network,
        run_batch,
    )
    from esrgan_deploy.runtime.tiling._choice import SEAM_LEVELS, TileChoice, choose_tiling, store_tiling
    from esrgan_deploy.runtime.tiling._cutter import cutter_for
    from esrgan_deploy.runtime.tiling._plan import EDGES, Edge, Span, Tile, TileOptions, TilePlan, plan_tiles
    from esrgan_deploy.runtime.tiling._seams import NotMeasurableError, SeamCurve, measure_seams

__all__ = [
    "EDGES",
    "SEAM_LEVELS",
    "Edge",
    "NotMeasurableError",
    "SeamCurve",
    "Span",
    "Tile",
    "TileChoice",
    "TileOptions",
    "TilePlan",
    "choose_tiling",
    "cutter_for",
    "fill",
    "measure_seams",
    "network_to_pixels",
    "peak_of",
    "pixels_to_network",
    "plan_tiles",
    "run_batch",
    "store_tiling",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_batch": ("fill", "network_to_pixels", "peak_of", "pixels_to_network", "run_batch"),
        "_choice": ("SEAM_LEVELS", "TileChoice", "choose_tiling", "store_tiling"),
        "_cutter": ("cutter_for",),
        "_plan": ("EDGES", "Edge", "Span", "Tile", "TileOptions", "TilePlan", "plan_tiles"),
        "_seams": ("NotMeasurableError", "SeamCurve", "measure_seams"),
    },
)
