"""What a run found, as it is kept, compared and judged."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.benchmarks.record._compare import check_machine, compare, describe_changes
    from esrgan_deploy.benchmarks.record._findings import (
        difference_of,
        ratios_of,
        roof_of,
        under_roof,
        warnings_of,
    )
    from esrgan_deploy.benchmarks.record._known import Known, known_of
    from esrgan_deploy.benchmarks.record._schema import (
        Results,
        Row,
        load_results,
        point_in_words,
        save_results,
    )

__all__ = [
    "Known",
    "Results",
    "Row",
    "check_machine",
    "compare",
    "describe_changes",
    "difference_of",
    "known_of",
    "load_results",
    "point_in_words",
    "ratios_of",
    "roof_of",
    "save_results",
    "under_roof",
    "warnings_of",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_compare": ("check_machine", "compare", "describe_changes"),
        "_findings": ("difference_of", "ratios_of", "roof_of", "under_roof", "warnings_of"),
        "_known": ("Known", "known_of"),
        "_schema": ("Results", "Row", "load_results", "point_in_words", "save_results"),
    },
)
