"""Network interpolation (section 3.4 of ESRGAN): between the faithful model and the sharp one."""

from pathlib import Path

from esrgan_deploy._errors import TrainingError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy._optional import require
from esrgan_deploy.export._checkpoint import load_checkpoint
from esrgan_deploy.export._names import folder_name

__all__ = ["interpolate"]


def interpolate(psnr: Path, gan: Path, output: Path, *, alpha: float) -> None:
    """Write ``(1 - alpha) · psnr + alpha · gan``, weight by weight, in float32.

    The two come from one training: the GAN stage starts from the PSNR model, and so their weights correspond.

    Args:
        psnr: Checkpoint of the PSNR-oriented stage.
        gan: Checkpoint of the GAN stage.
        output: A .safetensors to write; it must not be there yet.
        alpha: 0..1; ESRGAN shows pictures at 0.8.

    Raises:
        CheckpointError: One cannot be read, or they are not one architecture.
        TrainingError: alpha is out of range, or the output exists or is no .safetensors.
    """
    if not 0.0 <= alpha <= 1.0:
        raise TrainingError(f"alpha is {alpha}; it is a number from 0 (psnr) to 1 (gan)")
    if output.suffix != ".safetensors":
        raise TrainingError(
            f"{output} would be written as safetensors; name it {output.with_name(folder_name(str(output)))}"
            ".safetensors"
        )
    if output.exists():
        raise TrainingError(f"{output} exists; give another name")
    mixed = load_checkpoint(gan, denoise_strength=alpha, denoise_with=psnr)
    save_file = require("safetensors.torch", extra="training").save_file
    with replaced_atomically(output) as temporary:
        save_file(mixed.tensors, temporary)
