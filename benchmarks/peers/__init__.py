"""The same net in other runtimes."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.benchmarks.peers._peers import open_peers
    from esrgan_deploy.benchmarks.peers._runtimes import in_openvino

__all__ = ["in_openvino", "open_peers"]

__getattr__, __dir__ = handed_on(
    __name__,
    {"_peers": ("open_peers",), "_runtimes": ("in_openvino",)},
)
