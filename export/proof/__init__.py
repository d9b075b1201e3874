"""What proves that a graph computes what PyTorch computes."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.proof._ort import activation_maxima, overflow_warnings, run, session_of
    from esrgan_deploy.export.proof._pictures import (
        fitted_picture,
        golden_pictures,
        noise_pictures,
        save_golden,
    )
    from esrgan_deploy.export.proof._reference import Reference, reference_of_module, reference_pairs, resized
    from esrgan_deploy.export.proof._verify import (
        affordable,
        graph_input,
        pictures_in,
        verify_graph,
        verify_shapes,
        verifying_session,
    )

__all__ = [
    "Reference",
    "activation_maxima",
    "affordable",
    "fitted_picture",
    "golden_pictures",
    "graph_input",
    "noise_pictures",
    "overflow_warnings",
    "pictures_in",
    "reference_of_module",
    "reference_pairs",
    "resized",
    "run",
    "save_golden",
    "session_of",
    "verify_graph",
    "verify_shapes",
    "verifying_session",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_ort": ("activation_maxima", "overflow_warnings", "run", "session_of"),
        "_pictures": ("fitted_picture", "golden_pictures", "noise_pictures", "save_golden"),
        "_reference": ("Reference", "reference_of_module", "reference_pairs", "resized"),
        "_verify": (
            "affordable",
            "graph_input",
            "pictures_in",
            "verify_graph",
            "verify_shapes",
            "verifying_session",
        ),
    },
)
