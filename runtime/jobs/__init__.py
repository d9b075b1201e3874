"""Jobs: folders and lists of files, worked off once each, whatever kills the process in between."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.jobs._events import JobEvent as JobEvent
    from esrgan_deploy.runtime.jobs._events import JobResult as JobResult
    from esrgan_deploy.runtime.jobs._inputs import JobItem as JobItem
    from esrgan_deploy.runtime.jobs._inputs import is_folder as is_folder
    from esrgan_deploy.runtime.jobs._job import Job as Job
    from esrgan_deploy.runtime.jobs._show import shown as shown

__getattr__, __dir__, __all__ = handed_on(__name__)
