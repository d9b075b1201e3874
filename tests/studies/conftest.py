"""A net that every study may look at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, rrdb_spec: Callable[..., Any]) -> Path:
    """A checkpoint of one block whose output is a picture; no test may change it."""
    import torch

    from esrgan_deploy.export.nets import RRDBNet

    path = tmp_path_factory.mktemp("studies") / "net.pth"
    torch.manual_seed(0)
    net = RRDBNet(rrdb_spec(blocks=1))
    with torch.no_grad():
        net.conv_last.weight.mul_(20)
        net.conv_last.bias.add_(0.5)
    torch.save(net.state_dict(), path)
    return path
