"""Times, memory and peaks, as they are measured."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.benchmarks.measure._machine import describe_machine as describe_machine
    from esrgan_deploy.benchmarks.measure._machine import machine_state as machine_state
    from esrgan_deploy.benchmarks.measure._machine import same_machine as same_machine
    from esrgan_deploy.benchmarks.measure._memory import host_peak as host_peak
    from esrgan_deploy.benchmarks.measure._memory import measure_memory as measure_memory
    from esrgan_deploy.benchmarks.measure._peaks import best_of as best_of
    from esrgan_deploy.benchmarks.measure._peaks import measure_peaks as measure_peaks
    from esrgan_deploy.benchmarks.measure._quality import measure_quality as measure_quality
    from esrgan_deploy.benchmarks.measure._subject import Subject as Subject
    from esrgan_deploy.benchmarks.measure._subject import check_point as check_point
    from esrgan_deploy.benchmarks.measure._subject import open_subject as open_subject
    from esrgan_deploy.benchmarks.measure._subject import session_options as session_options
    from esrgan_deploy.benchmarks.measure._timing import UNSTABLE as UNSTABLE
    from esrgan_deploy.benchmarks.measure._timing import Sampler as Sampler
    from esrgan_deploy.benchmarks.measure._timing import Timing as Timing
    from esrgan_deploy.benchmarks.measure._timing import measure as measure
    from esrgan_deploy.benchmarks.measure._timing import paired_ratio as paired_ratio
    from esrgan_deploy.benchmarks.measure._timing import sample as sample
    from esrgan_deploy.benchmarks.measure._timing import timed as timed

__getattr__, __dir__, __all__ = handed_on(__name__)
