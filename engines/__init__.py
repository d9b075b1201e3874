"""TensorRT plans from ONNX graphs: what can be built, how it is built, and what was built.

Importing this loads neither TensorRT nor onnx; the functions do.
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.engines._build import BuildResult, engine_from_onnx
    from esrgan_deploy.engines._explain import explain
    from esrgan_deploy.engines._layers import Layer, Tensor, declared_bytes_per_pixel
    from esrgan_deploy.engines._options import BuildOptions
    from esrgan_deploy.engines._preflight import preflight
    from esrgan_deploy.engines._rebuild import built_fields
    from esrgan_deploy.engines._shapes import ShapeRange

__all__ = [
    "BuildOptions",
    "BuildResult",
    "Layer",
    "ShapeRange",
    "Tensor",
    "built_fields",
    "declared_bytes_per_pixel",
    "engine_from_onnx",
    "explain",
    "preflight",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_build": ("BuildResult", "engine_from_onnx"),
        "_explain": ("explain",),
        "_layers": ("Layer", "Tensor", "declared_bytes_per_pixel"),
        "_options": ("BuildOptions",),
        "_preflight": ("preflight",),
        "_rebuild": ("built_fields",),
        "_shapes": ("ShapeRange",),
    },
)
