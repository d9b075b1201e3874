"""What returns to half precision so that the budget holds."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.quantisation.search._loss import HeldLoss, Loss
    from esrgan_deploy.export.quantisation.search._search import (
        Point,
        SearchOptions,
        SearchResult,
        frontier,
        search,
        table,
    )

__all__ = ["HeldLoss", "Loss", "Point", "SearchOptions", "SearchResult", "frontier", "search", "table"]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_loss": ("HeldLoss", "Loss"),
        "_search": ("Point", "SearchOptions", "SearchResult", "frontier", "search", "table"),
    },
)
