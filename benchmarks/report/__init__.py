"""What a reader sees: tables, pages, seams."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.benchmarks.report._html import html_report, require_report
    from esrgan_deploy.benchmarks.report._seams import run_seams, seams_table
    from esrgan_deploy.benchmarks.report._table import table

__all__ = ["html_report", "require_report", "run_seams", "seams_table", "table"]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_html": ("html_report", "require_report"),
        "_seams": ("run_seams", "seams_table"),
        "_table": ("table",),
    },
)
