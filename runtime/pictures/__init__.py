"""Picture files: read and written with alpha, depth, colour profile and metadata."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.pictures._alpha import bound_alpha as bound_alpha
    from esrgan_deploy.runtime.pictures._alpha import fill_hidden as fill_hidden
    from esrgan_deploy.runtime.pictures._formats import MAX_PIXELS as MAX_PIXELS
    from esrgan_deploy.runtime.pictures._formats import OUTPUT_FORMATS as OUTPUT_FORMATS
    from esrgan_deploy.runtime.pictures._output import empty_output as empty_output
    from esrgan_deploy.runtime.pictures._output import open_output as open_output
    from esrgan_deploy.runtime.pictures._output import release_rows as release_rows
    from esrgan_deploy.runtime.pictures._picture import Picture as Picture
    from esrgan_deploy.runtime.pictures._read import read_picture as read_picture
    from esrgan_deploy.runtime.pictures._write import check_fits as check_fits
    from esrgan_deploy.runtime.pictures._write import check_output as check_output
    from esrgan_deploy.runtime.pictures._write import write_picture as write_picture

__getattr__, __dir__, __all__ = handed_on(__name__)
