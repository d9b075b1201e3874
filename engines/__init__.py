"""TensorRT plans from ONNX graphs: what can be built, how it is built, and what was built.

Importing this loads neither TensorRT nor onnx; the functions do.
"""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.engines._build import BuildResult as BuildResult
    from esrgan_deploy.engines._build import check_sizes as check_sizes
    from esrgan_deploy.engines._build import engine_from_onnx as engine_from_onnx
    from esrgan_deploy.engines._explain import explain as explain
    from esrgan_deploy.engines._graph import read_graph as read_graph
    from esrgan_deploy.engines._layers import Layer as Layer
    from esrgan_deploy.engines._layers import Tensor as Tensor
    from esrgan_deploy.engines._layers import declared_bytes_per_pixel as declared_bytes_per_pixel
    from esrgan_deploy.engines._options import BuildOptions as BuildOptions
    from esrgan_deploy.engines._preflight import preflight as preflight
    from esrgan_deploy.engines._rebuild import built_fields as built_fields
    from esrgan_deploy.engines._shapes import ShapeRange as ShapeRange

__getattr__, __dir__, __all__ = handed_on(__name__)
