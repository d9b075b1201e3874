"""What runs a graph: the protocol, who answers to it, and whether an artefact computes what it should."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.sessions._checks import check_batch, check_output, check_size, output_shape
    from esrgan_deploy.runtime.sessions._golden import verify_golden, verify_session
    from esrgan_deploy.runtime.sessions._health import bad_picture_error, judge
    from esrgan_deploy.runtime.sessions._host_slot import HostSlot
    from esrgan_deploy.runtime.sessions._open import default_model, model_path, open_session
    from esrgan_deploy.runtime.sessions._protocol import (
        SLOTS_ON_GPU,
        Array,
        BatchOutput,
        Session,
        SessionInfo,
        SessionOptions,
        Slot,
    )

__all__ = [
    "SLOTS_ON_GPU",
    "Array",
    "BatchOutput",
    "HostSlot",
    "Session",
    "SessionInfo",
    "SessionOptions",
    "Slot",
    "bad_picture_error",
    "check_batch",
    "check_output",
    "check_size",
    "default_model",
    "judge",
    "model_path",
    "open_session",
    "output_shape",
    "verify_golden",
    "verify_session",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_checks": ("check_batch", "check_output", "check_size", "output_shape"),
        "_golden": ("verify_golden", "verify_session"),
        "_health": ("bad_picture_error", "judge"),
        "_host_slot": ("HostSlot",),
        "_open": ("default_model", "model_path", "open_session"),
        "_protocol": (
            "Array",
            "BatchOutput",
            "SLOTS_ON_GPU",
            "Session",
            "SessionInfo",
            "SessionOptions",
            "Slot",
        ),
    },
)
