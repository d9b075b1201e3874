"""What a machine with a GPU can show, within twelve minutes: python3 scripts/gpu.py [--wheels DIR] [--out DIR]

Installs this package beside whatever the machine has (nothing is fetched), and with it the wheels in DIR, whose
parts (NAME.whl.part00, NAME.whl.part01, ...) are joined first. Then one step after the other, each a process of its
own, the most telling first; the first that hangs ends it all, with every thread's stack on standard error. gpu.json
in --out (default: $OUT, else studies/results) is written anew after each step. With ESRGAN_GPU_SUITE=rehearse it
all runs on a processor, which shows that the steps work and nothing of a GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REHEARSAL = os.environ.get("ESRGAN_GPU_SUITE") == "rehearse"
BUDGET = 720.0
"""Seconds for all of it: a machine is lent for a quarter of an hour, its start and the transfers included."""

HUNG = float(os.environ.get("ESRGAN_GPU_LIMIT", 90))
"""Seconds after which one test has hung."""

# Tests of tests/gpu by what they ask; where no TensorRT takes the card, the same tests run on PyTorch's CUDA session.
STEPS: dict[str, tuple[str, ...]] = {
    "ONNX Runtime, without torch": ("test_gpu_alone.py",),
    "plans, and whether the card takes them": (
        "test_gpu_plans.py::test_what_the_library_itself_says_of_the_card",
        "test_gpu_faults.py::test_does_this_card_take_the_plan",
        "test_gpu_plans.py::test_a_plan_holds_what_was_asked_for",
        "test_gpu_plans.py::test_fp32_is_fp32_and_not_tf32",
    ),
    "one slot over changing shapes": (
        "test_gpu_load.py::test_one_slot_over_changing_shapes_is_as_without_a_graph",
        "test_gpu_streams.py::test_sizes_that_change_in_mid_stream",
    ),
    "scratch memory": ("test_gpu_plans.py::test_the_scratch_that_each_shape_asks_for",),
    "other threads during a capture": ("test_gpu_load.py::test_other_threads_disturb_no_capture",),
    "arrays and streams of others": (
        "test_gpu_load.py::test_an_array_outlives_the_stream_that_it_was_made_on",
        "test_gpu_interop.py",
    ),
    "slots and threads": (
        "test_gpu_load.py::test_three_slots_and_sixteen_threads_are_as_one_slot",
        "test_gpu_streams.py::test_frames_in_flight_are_those_of_one_at_a_time",
    ),
    "NaN": (
        "test_gpu_faults.py::test_a_nan_is_seen",
        "test_gpu_faults.py::test_an_overflow_is_made_again_in_fp32",
    ),
    "outscale and odd sizes": ("test_gpu_plans.py::test_an_outscale_and_odd_sizes",),
    "faults": (
        "test_gpu_faults.py::test_memory_that_runs_out_is_answered_with_smaller_tiles",
        "test_gpu_load.py::test_an_illegal_address_is_one_line",
        "test_gpu_faults.py::test_a_damaged_plan_is_refused_and_one_that_is_vouched_for_does_not_end_the_process",
    ),
    "kernels kept": ("test_gpu_plans.py::test_kernels_compiled_once_are_kept",),
    "two cards": ("test_gpu_load.py::test_two_cards_share_one_queue",),
    "parity": ("test_gpu_parity.py",),
    "memory over a thousand frames": ("test_gpu_streams.py::test_memory_stays_where_it_is",),
}
SPEED = ("share of peak, 23 blocks", "tiles, 23 blocks", "flat and nested, 23 blocks")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="wheels, or parts of them, that are missing here"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "studies" / "results")))
    parser.add_argument("--site", type=Path, help="where to install (default: a temporary folder)")
    parser.add_argument("--only", metavar="TEXT", help="the steps whose name holds TEXT")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="esrgan-gpu-"))
    site = (args.site or work / "site").resolve()
    install(site, args.wheels)
    # The studies are no part of the package.
    roots = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": roots}
    environment |= {"ESRGAN_GPU_WORK": str(work), "ESRGAN_GPU_LIMIT": str(HUNG)}
    report: dict[str, Any] = {"schema": 2, "command": "python3 scripts/gpu.py", "steps": {}}
    path = out / ("gpu_rehearsal.json" if REHEARSAL else "gpu.json")
    for name in (*STEPS, *SPEED):
        if args.only and args.only not in name:
            continue
        left = BUDGET - (time.monotonic() - started)
        if left <= 0 and not REHEARSAL:
            step: dict[str, Any] = {"status": "not begun: the time was used up"}
        elif name in STEPS:
            step = tests(name, work, environment)
        else:
            step = speed(name, work, environment, max(left, 30.0))
        report["steps"][name] = step
        write(path, report)
        print(f"{time.monotonic() - started:5.0f} s  {name}: {step['status']}", flush=True)
        if step["status"] == "hung":
            break
    print(table(report))
    return 0 if all(step["status"] == "passed" for step in report["steps"].values()) else 1


def tests(name: str, work: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a step's tests in one process; what they noted stands in the report, whatever became of them."""
    results = work / "results" / name.replace(" ", "-")
    nodes = [f"tests/gpu/{node}" for node in STEPS[name]]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    begun = time.monotonic()
    status = subprocess.run(
        [*command, *nodes], cwd=ROOT, env={**environment, "ESRGAN_GPU_RESULTS": str(results)}
    ).returncode
    noted = [json.loads(path.read_text()) for path in results.glob("gpu*.json")]
    step = noted[0] if noted else {"shown": {}, "not shown": {}}
    # What ended in the midst of a test has no status of its own in the report.
    hung = status != 0 and step.get("exit status") is None and time.monotonic() - begun >= HUNG
    step["status"] = "passed" if status == 0 else "hung" if hung else f"failed with {status}"
    step["seconds"] = round(time.monotonic() - begun, 1)
    return step


def speed(name: str, work: Path, environment: dict[str, str], limit: float) -> dict[str, Any]:
    """Run one measurement; its own JSON is the step's figures."""
    net, figures = work / "net23.safetensors", work / "figures.json"
    figures.unlink(missing_ok=True)
    side, seconds = ("32", "1") if REHEARSAL else ("256", "8")
    bench = [sys.executable, "-m", "esrgan_deploy.benchmarks._cli", str(net), "--precision", "fp16"]
    bench += ["--seconds", seconds, "--json", str(figures)]
    forms = [sys.executable, "-m", "studies", "graph_forms", str(net)]
    tiles = [*bench, "--no-peaks", "--shape", "1x48x48" if REHEARSAL else "1x540x960"]
    commands = {
        SPEED[0]: [*bench, "--shape", f"1x{side}x{side}"],
        SPEED[1]: [*tiles, "--sweep", "tile=40,48" if REHEARSAL else "tile=128,192,256,384,512"],
        SPEED[2]: [*forms, "--side", side, "--seconds", "0" if REHEARSAL else "20", "--json", str(figures)],
    }
    begun = time.monotonic()
    try:
        if not net.exists():
            subprocess.run(
                [sys.executable, "-c", _NET, str(net), "1" if REHEARSAL else "23"],
                check=True,
                env=environment,
                timeout=limit,
            )
        running = subprocess.Popen(
            commands[name], cwd=work, env={**environment, "PYTHONFAULTHANDLER": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            said, complained = running.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            # Python's own fault handler prints every thread's stack.
            running.send_signal(signal.SIGABRT)
            print(running.communicate()[1], file=sys.stderr)
            raise
    except subprocess.TimeoutExpired:
        return {"status": "hung", "seconds": round(limit, 1), "command": commands[name][1:]}
    print(said[-3000:])
    step: dict[str, Any] = {
        "status": "passed" if running.returncode == 0 else f"failed with {running.returncode}"
    }
    step |= {"seconds": round(time.monotonic() - begun, 1), "command": commands[name][1:]}
    if figures.exists():
        step["figures"] = json.loads(figures.read_text())
    else:
        step["said"] = complained[-500:]
    return step


# 23 blocks of random weights, scaled down so that nothing overflows: its speed is that of RealESRGAN_x4plus.
_NET = """
import sys, torch
from safetensors.torch import save_file
from esrgan_deploy import ModelSpec
from esrgan_deploy.export.nets import RRDBNet
torch.manual_seed(0)
spec = ModelSpec(architecture="rrdbnet", scale=4, in_channels=3, out_channels=3, features=64,
                 blocks=int(sys.argv[2]), growth=32, source_sha256="")
save_file({name: value.mul(0.3) for name, value in RRDBNet(spec).state_dict().items()}, sys.argv[1])
"""


def write(path: Path, report: dict[str, Any]) -> None:
    # Whole or not at all: the machine may be taken back at any moment.
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(report, indent=2) + "\n")
    fresh.replace(path)


def install(site: Path, wheels: Path | None) -> None:
    flags = "--quiet --no-deps --no-index --no-compile --disable-pip-version-check --upgrade --target"
    pip = [sys.executable, "-m", "pip", "install", *flags.split(), str(site)]
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


def table(report: dict[str, Any]) -> str:
    lines = []
    for name, step in report["steps"].items():
        lines.append(f"{name}: {step['status']} ({step.get('seconds', 0)} s)")
        for test, figures in sorted(step.get("shown", {}).items()):
            told = ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in figures.items()
                if isinstance(value, (int, float, str, bool, list))
            )
            lines.append(f"  shown      {test}: {told[:160]}")
        reasons: dict[str, int] = {}
        for reason in step.get("not shown", {}).values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines += [f"  not shown  {count} tests: {reason[:160]}" for reason, count in sorted(reasons.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
