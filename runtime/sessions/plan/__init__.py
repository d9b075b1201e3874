"""A TensorRT plan as a session: admitted, loaded, and run over the caller's streams or its own."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.sessions.plan._admit import Admitted as Admitted
    from esrgan_deploy.runtime.sessions.plan._admit import check_plan as check_plan
    from esrgan_deploy.runtime.sessions.plan._session import PlanSession as PlanSession

__getattr__, __dir__, __all__ = handed_on(__name__)
