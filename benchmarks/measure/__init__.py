"""Times, memory and peaks, as they are measured."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.benchmarks.measure._machine import describe_machine, machine_state, same_machine
    from esrgan_deploy.benchmarks.measure._memory import host_peak, measure_memory
    from esrgan_deploy.benchmarks.measure._peaks import best_of, measure_peaks
    from esrgan_deploy.benchmarks.measure._quality import measure_quality
    from esrgan_deploy.benchmarks.measure._subject import Subject, check_point, open_subject, session_options
    from esrgan_deploy.benchmarks.measure._timing import (
        UNSTABLE,
        Sampler,
        Timing,
        measure,
        paired_ratio,
        sample,
        timed,
    )

__all__ = [
    "UNSTABLE",
    "Sampler",
    "Subject",
    "Timing",
    "best_of",
    "check_point",
    "describe_machine",
    "host_peak",
    "machine_state",
    "measure",
    "measure_memory",
    "measure_peaks",
    "measure_quality",
    "open_subject",
    "paired_ratio",
    "same_machine",
    "sample",
    "session_options",
    "timed",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_machine": ("describe_machine", "machine_state", "same_machine"),
        "_memory": ("host_peak", "measure_memory"),
        "_peaks": ("best_of", "measure_peaks"),
        "_quality": ("measure_quality",),
        "_subject": ("Subject", "check_point", "open_subject", "session_options"),
        "_timing": ("Sampler", "Timing", "UNSTABLE", "measure", "paired_ratio", "sample", "timed"),
    },
)
