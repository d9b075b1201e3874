"""From nothing to an enlarged picture: python3 scripts/quickstart.py [picture]

Makes .venv, installs, exports the model that ships, verifies it, builds a portable TensorRT plan (no GPU is
needed for that), and enlarges a picture with the verified graph.
"""

import subprocess
import sys
from pathlib import Path

from _environment import ROOT, ready


def main() -> None:
    if len(sys.argv) > 2 or sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    picture = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "docs" / "pictures" / "harbour.png"
    if not picture.is_file():
        sys.exit(f"there is no picture {picture}")
    scripts = ready(".venv", "export,cpu,rtx,media")
    run(scripts / "esrgan-export", "-o", "out", "--plan", "--force")
    enlarged = Path("out") / f"{picture.stem}_x4.png"
    run(scripts / "esrgan-upscale", picture, "-o", enlarged, "--model", "out/model.fp16.onnx", "--force")
    print()
    print("made, in the folder out/:")
    print("  model.onnx, model.fp16.onnx   the model as verified ONNX graphs")
    print("  model.fp16.plan               a TensorRT for RTX plan, for any NVIDIA card it supports")
    print("  model.json                    what each of them is, and how far it is from PyTorch")
    print(f"  {enlarged.name:29} the picture, four times as large")
    print("next: .venv/bin/esrgan-bench out/model.onnx    or: python3 scripts/quickstart.py your-picture.png")


def run(*command: object) -> None:
    words = [str(word) for word in command]
    print(f"\n$ {' '.join([Path(words[0]).name, *words[1:]])}", flush=True)
    status = subprocess.run(words, cwd=ROOT).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
