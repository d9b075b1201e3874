"""All evidence that a machine with a GPU can give, in one call: python3 scripts/gpu.py [--wheels DIR] [--out DIR]

Installs this package beside whatever the machine has (nothing is fetched), and with it the wheels in DIR, whose parts
(NAME.whl.part00, NAME.whl.part01, ...) are joined first; runs the GPU suite and the bench; prints a short table.
gpu.json and bench.json land in --out (default: $OUT, else benchmarks/results).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="wheels, or parts of them, that are missing here"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "benchmarks" / "results"))
    )
    parser.add_argument("--site", type=Path, help="where to install (default: a temporary folder)")
    parser.add_argument("pytest", nargs="*", help="further arguments of pytest, after --")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    site = (args.site or Path(tempfile.mkdtemp(prefix="esrgan-gpu-"))).resolve()
    install(site, args.wheels)
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment["ESRGAN_GPU_RESULTS"] = str(out)
    suite = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "tests/gpu",
        "-p",
        "no:cacheprovider",
        "--tb=short",
    ]
    status = subprocess.run([*suite, *args.pytest], cwd=ROOT, env=environment).returncode
    status = bench(out, environment) or status
    print(table(out))
    return status


def install(site: Path, wheels: Path | None) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
    ]
    pip += ["--no-compile", "--upgrade", "--target", str(site)]
    if wheels is not None:
        for first in sorted(wheels.glob("*.whl.part00")):
            parts = sorted(wheels.glob(first.name.removesuffix("00") + "*"))
            first.with_suffix("").write_bytes(b"".join(part.read_bytes() for part in parts))
        found = [str(path) for path in sorted(wheels.glob("*.whl"))]
        if found:
            subprocess.run([*pip, *found], check=True)
    # From a copy: a build leaves its traces in the tree that it is made from.
    with tempfile.TemporaryDirectory() as copy:
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
        source = Path(copy)
        if archive.returncode == 0:
            subprocess.run(["tar", "-x", "-C", copy], input=archive.stdout, check=True)
        else:
            source = ROOT
        subprocess.run([*pip, "--no-build-isolation", str(source)], check=True)


def bench(out: Path, environment: dict[str, str]) -> int:
    # PyTorch runs the checkpoint on any card; plans are timed where the suite could open one.
    model = ROOT / "src" / "esrgan_deploy" / "models" / "default.safetensors"
    command = [sys.executable, "-m", "esrgan_deploy.benchmarks._cli", str(model), "--seconds", "8"]
    rehearsal = environment.get("ESRGAN_GPU_SUITE") == "rehearse"
    command += (
        ["--shape", "1x32x32"]
        if rehearsal
        else ["--sweep", "shape=1x256x256,1x720x1280", "--precision", "fp16"]
    )
    return subprocess.run([*command, "--json", str(out / "bench.json")], cwd=out, env=environment).returncode


def table(out: Path) -> str:
    lines = []
    for report in sorted(out.glob("gpu*.json")):
        data = json.loads(report.read_text())
        lines.append(f"{report.name}: {data['machine']}, on {data['on']}")
        for name, figures in sorted(data["shown"].items()):
            kept = {
                key: value for key, value in figures.items() if isinstance(value, (int, float, str, bool))
            }
            told = ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in kept.items()
            )
            lines.append(f"  shown      {name}: {told[:160]}")
        reasons: dict[str, int] = {}
        for reason in data["not shown"].values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines += [f"  not shown  {count} tests: {reason[:160]}" for reason, count in sorted(reasons.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
