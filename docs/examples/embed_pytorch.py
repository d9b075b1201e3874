"""Enlarge tensors inside a PyTorch program: on its device and its stream, without a copy and without a wait.

    python embed_pytorch.py out/model.fp16.plan

With an ``.onnx`` or a ``.pth`` on a machine without a GPU it runs on the processor's memory in the same way.
"""

import contextlib
import sys
from pathlib import Path

try:
    import torch
except ImportError:
    sys.exit("PyTorch is not installed. Run: pip install 'esrgan-deploy[export]'")

from esrgan_deploy import EsrganDeployError, Upscaler


def main(model: str) -> None:
    with Upscaler(model) as up:
        info = up.info
        on_gpu = info.device >= 0
        if on_gpu and not torch.cuda.is_available():
            sys.exit(f"{info.name} is on cuda:{info.device}, and this PyTorch finds no GPU. Run: nvidia-smi")
        device = torch.device("cuda", info.device) if on_gpu else torch.device("cpu")
        # A stream of the program's own: everything below is ordered on it, and only its end is waited for.
        stream = torch.cuda.Stream(device) if on_gpu else None
        with torch.cuda.stream(stream) if on_gpu else contextlib.nullcontext():
            batch = torch.rand(info.batch_shape(1, 24, 32), device=device)
            batch = (
                (batch * 255).byte() if info.form == "uint8" else batch.to(getattr(torch, info.dtype.name))
            )

            made = torch.from_dlpack(up.run(batch, stream=stream))
            brighter = made.float().mul(1.1).clamp(0, 255 if info.form == "uint8" else 1)

            # Into memory that is there already, as for every further frame of a film.
            out = torch.empty_like(made)
            up.run(batch, stream=stream, out=out)
            same = torch.equal(out, made)
        print(info.provider)
        print(tuple(batch.shape), "->", tuple(brighter.shape), "on", brighter.device, "twice the same:", same)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(sys.argv[0]).name} MODEL")
    try:
        main(sys.argv[1])
    except EsrganDeployError as error:
        sys.exit(str(error))
