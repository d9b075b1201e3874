"""Jobs and who works them off: the scheduler, a lane for each device, and the guard over every batch."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.queue._guard import Guard as Guard
    from esrgan_deploy.runtime.queue._job import Job as Job
    from esrgan_deploy.runtime.queue._job import Progress as Progress
    from esrgan_deploy.runtime.queue._job import Task as Task
    from esrgan_deploy.runtime.queue._lane import borrowed_lanes as borrowed_lanes
    from esrgan_deploy.runtime.queue._lane import open_lanes as open_lanes
    from esrgan_deploy.runtime.queue._lane import refuse_idle as refuse_idle
    from esrgan_deploy.runtime.queue._scheduler import Scheduler as Scheduler

__getattr__, __dir__, __all__ = handed_on(__name__)
