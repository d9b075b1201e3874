"""What opens a checkpoint for the runtime, by entry point; it imports no torch before it asks for it."""

from pathlib import Path

from esrgan_deploy._optional import require
from esrgan_deploy.runtime.sessions import Session, SessionOptions

__all__ = ["open_checkpoint"]


def open_checkpoint(path: Path, options: SessionOptions) -> Session:
    """Open a checkpoint as PyTorch runs it: the reference, in fp32 to the bit what artefacts are held against.

    Args:
        path: A ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file, or ncnn's ``.param`` or ``.bin`` with the other
            beside it.
        options: The net computes on the CUDA device that ``device`` names where PyTorch finds one, else on the
            processor; ``providers=("cpu",)`` keeps it there.

    Raises:
        CheckpointError: The file cannot be read, or is of no known family.
        InferenceError: The net cannot be run here.
        MissingDependencyError: The extra ``export`` is not installed.
    """
    require("torch", extra="export")
    require("safetensors", extra="export")
    from esrgan_deploy.export.checkpoints import load_checkpoint
    from esrgan_deploy.export.pytorch._session import TorchSession

    return TorchSession(load_checkpoint(path), options, name=path.name)
