"""Peak memory of one artefact, in a process of its own so that it is its own.

``python -m esrgan_deploy.benchmarks.measure._memory QUESTION`` prints ``{"host", "host_before", "device"}`` in bytes:
the largest resident memory of a process that opens the artefact and runs it; what the interpreter and numpy held
before it was opened; and the GPU memory that the driver counts more than before, null without a GPU.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from esrgan_deploy._console import one_line
from esrgan_deploy.benchmarks._options import BenchOptions, Point
from esrgan_deploy.benchmarks.measure._subject import open_subject, session_options
from esrgan_deploy.runtime import SessionOptions, open_session

__all__ = ["host_peak", "measure_memory"]

# Batches before the peak is read: the second one sees what the first has left behind.
RUNS = 2
TIMEOUT = 600


def measure_memory(
    model: Path, point: Point, options: BenchOptions
) -> tuple[dict[str, int | None] | None, str]:
    """Run an artefact in a process of its own.

    Args:
        model: The artefact.
        point: What it runs.
        options: How it is opened.

    Returns:
        What the process printed, and an empty string; or None and the reason.
    """
    question = {
        "model": str(model),
        "point": dataclasses.asdict(point),
        "options": dataclasses.asdict(session_options(options)),
    }
    command = [sys.executable, "-m", "esrgan_deploy.benchmarks.measure._memory", json.dumps(question)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"not measured: {one_line(error)[:200]}"
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return None, f"not measured: a process of its own ended with {answer.returncode} ({last[:200]})"
    # Last, because what a library prints comes before it.
    found: dict[str, int | None] = json.loads(answer.stdout.splitlines()[-1])
    return found, ""


def _main(question: dict[str, Any]) -> dict[str, int | None]:
    model, point, fields = Path(question["model"]), question["point"], question["options"]
    at = Point(**{**point, "shape": tuple(point["shape"])})
    options = SessionOptions(**{**fields, "providers": fields["providers"] and tuple(fields["providers"])})
    before = host_peak()
    used = _device_used(options.device)
    with (
        contextlib.closing(open_session(model, options)) as session,
        contextlib.closing(open_subject(session, model, at)) as subject,
    ):
        for _ in range(RUNS):
            for sampler in subject.samplers.values():
                sampler()
        after = _device_used(options.device)
        device = after - used if session.info.device >= 0 and after and used else None
    return {"host": host_peak(), "host_before": before, "device": device}


def host_peak() -> int | None:
    """Return the largest resident memory of this process so far, in bytes; None where the system does not say."""
    # Not getrusage: its figure outlives exec, so that a child would report the peak of what started it.
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _device_used(device: int) -> int | None:
    from esrgan_deploy.runtime.device import cuda_device_count

    if cuda_device_count() <= device:
        return None
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    if int(runtime.cudaSetDevice(device)[0]) != 0:
        return None
    status, free, total = runtime.cudaMemGetInfo()
    return int(total) - int(free) if int(status) == 0 else None


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
