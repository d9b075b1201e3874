"""What proves that a graph computes what PyTorch computes."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.proof._ort import activation_maxima as activation_maxima
    from esrgan_deploy.export.proof._ort import overflow_warnings as overflow_warnings
    from esrgan_deploy.export.proof._ort import run as run
    from esrgan_deploy.export.proof._ort import session_of as session_of
    from esrgan_deploy.export.proof._parts import verify_parts as verify_parts
    from esrgan_deploy.export.proof._pictures import fitted_picture as fitted_picture
    from esrgan_deploy.export.proof._pictures import golden_pictures as golden_pictures
    from esrgan_deploy.export.proof._pictures import noise_pictures as noise_pictures
    from esrgan_deploy.export.proof._pictures import save_golden as save_golden
    from esrgan_deploy.export.proof._reference import Reference as Reference
    from esrgan_deploy.export.proof._reference import reference_of_module as reference_of_module
    from esrgan_deploy.export.proof._reference import reference_pairs as reference_pairs
    from esrgan_deploy.export.proof._reference import resized as resized
    from esrgan_deploy.export.proof._rounding import rounded_reference as rounded_reference
    from esrgan_deploy.export.proof._rounding import rounding_costs as rounding_costs
    from esrgan_deploy.export.proof._verify import affordable as affordable
    from esrgan_deploy.export.proof._verify import graph_input as graph_input
    from esrgan_deploy.export.proof._verify import pictures_in as pictures_in
    from esrgan_deploy.export.proof._verify import verify_graph as verify_graph
    from esrgan_deploy.export.proof._verify import verify_shapes as verify_shapes
    from esrgan_deploy.export.proof._verify import verifying_session as verifying_session

__getattr__, __dir__, __all__ = handed_on(__name__)
