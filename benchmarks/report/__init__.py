"""What a reader sees: tables, pages, seams."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.benchmarks.report._html import html_report as html_report
    from esrgan_deploy.benchmarks.report._html import require_report as require_report
    from esrgan_deploy.benchmarks.report._seams import run_seams as run_seams
    from esrgan_deploy.benchmarks.report._seams import seams_table as seams_table
    from esrgan_deploy.benchmarks.report._table import table as table

__getattr__, __dir__, __all__ = handed_on(__name__)
