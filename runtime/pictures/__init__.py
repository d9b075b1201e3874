"""Picture files: read and written with alpha, depth, colour profile and metadata."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.pictures._alpha import bound_alpha, fill_hidden
    from esrgan_deploy.runtime.pictures._formats import MAX_PIXELS, OUTPUT_FORMATS
    from esrgan_deploy.runtime.pictures._output import empty_output, open_output, release_rows
    from esrgan_deploy.runtime.pictures._picture import Picture
    from esrgan_deploy.runtime.pictures._read import read_picture
    from esrgan_deploy.runtime.pictures._write import check_fits, check_output, write_picture

__all__ = [
    "MAX_PIXELS",
    "OUTPUT_FORMATS",
    "Picture",
    "bound_alpha",
    "check_fits",
    "check_output",
    "empty_output",
    "fill_hidden",
    "open_output",
    "read_picture",
    "release_rows",
    "write_picture",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_alpha": ("bound_alpha", "fill_hidden"),
        "_formats": ("MAX_PIXELS", "OUTPUT_FORMATS"),
        "_output": ("empty_output", "open_output", "release_rows"),
        "_picture": ("Picture",),
        "_read": ("read_picture",),
        "_write": ("check_fits", "check_output", "write_picture"),
    },
)
