"""A TensorRT plan as a session: admitted, loaded, and run over the caller's streams or its own."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.sessions.plan._admit import Admitted, check_plan
    from esrgan_deploy.runtime.sessions.plan._session import PlanSession

__all__ = ["Admitted", "PlanSession", "check_plan"]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_admit": ("Admitted", "check_plan"),
        "_session": ("PlanSession",),
    },
)
