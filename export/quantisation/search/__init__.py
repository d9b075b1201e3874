"""What returns to half precision so that the budget holds."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.quantisation.search._loss import HeldLoss as HeldLoss
    from esrgan_deploy.export.quantisation.search._loss import Loss as Loss
    from esrgan_deploy.export.quantisation.search._search import Point as Point
    from esrgan_deploy.export.quantisation.search._search import SearchOptions as SearchOptions
    from esrgan_deploy.export.quantisation.search._search import SearchResult as SearchResult
    from esrgan_deploy.export.quantisation.search._search import frontier as frontier
    from esrgan_deploy.export.quantisation.search._search import search as search
    from esrgan_deploy.export.quantisation.search._search import table as table

__getattr__, __dir__, __all__ = handed_on(__name__)
