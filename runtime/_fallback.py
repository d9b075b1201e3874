"""Placeholder until the fallback lands: to be rewritten as its task says."""

from pathlib import Path

from esrgan_deploy.runtime._session import SessionInfo

__all__ = ["fallback_for"]


def fallback_for(path: Path, info: SessionInfo) -> Path | None:
    """Return the artefact that makes a bad frame again."""
    return None
