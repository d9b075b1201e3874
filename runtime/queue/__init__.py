"""Jobs and who works them off: the scheduler, a lane for each device, and the guard over every batch."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.queue._guard import Guard
    from esrgan_deploy.runtime.queue._job import Job, Progress, Task
    from esrgan_deploy.runtime.queue._lane import borrowed_lanes, open_lanes, refuse_idle
    from esrgan_deploy.runtime.queue._scheduler import Scheduler

__all__ = ["Guard", "Job", "Progress", "Scheduler", "Task", "borrowed_lanes", "open_lanes", "refuse_idle"]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_guard": ("Guard",),
        "_job": ("Job", "Progress", "Task"),
        "_lane": ("borrowed_lanes", "open_lanes", "refuse_idle"),
        "_scheduler": ("Scheduler",),
    },
)
