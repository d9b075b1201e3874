"""What a run found, as it is kept, compared and judged."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.benchmarks.record._compare import check_machine as check_machine
    from esrgan_deploy.benchmarks.record._compare import compare as compare
    from esrgan_deploy.benchmarks.record._compare import describe_changes as describe_changes
    from esrgan_deploy.benchmarks.record._findings import difference_of as difference_of
    from esrgan_deploy.benchmarks.record._findings import ratios_of as ratios_of
    from esrgan_deploy.benchmarks.record._findings import roof_of as roof_of
    from esrgan_deploy.benchmarks.record._findings import under_roof as under_roof
    from esrgan_deploy.benchmarks.record._findings import warnings_of as warnings_of
    from esrgan_deploy.benchmarks.record._known import Known as Known
    from esrgan_deploy.benchmarks.record._known import known_of as known_of
    from esrgan_deploy.benchmarks.record._schema import Results as Results
    from esrgan_deploy.benchmarks.record._schema import Row as Row
    from esrgan_deploy.benchmarks.record._schema import load_results as load_results
    from esrgan_deploy.benchmarks.record._schema import point_in_words as point_in_words
    from esrgan_deploy.benchmarks.record._schema import save_results as save_results

__getattr__, __dir__, __all__ = handed_on(__name__)
