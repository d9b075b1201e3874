"""Fixtures that every room's tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    """The test material that lies beside the repository and is never part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip("the test material ../shared/assets is not here")
    return folder
