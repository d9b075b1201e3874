"""The same net in other runtimes."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.benchmarks.peers._peers import open_peers as open_peers
    from esrgan_deploy.benchmarks.peers._runtimes import in_openvino as in_openvino

__getattr__, __dir__, __all__ = handed_on(__name__)
