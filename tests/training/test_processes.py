"""Trainings that are killed, that run out of room, and that run as two processes."""

import json
import os
import signal
import socket
import time

import pytest
import torch
from safetensors.torch import load_file

from esrgan_deploy.training._cli import main

# Most start processes that import torch: seconds apiece, more on a busy machine. What needs none of its own is
# trained in this one.
pytestmark = pytest.mark.slow

COMMAND = "esrgan_deploy.training._cli"


@pytest.fixture
def arguments(photographs, cache):
    """Make the command line of a training of seconds."""

    def make(output, **keys):
        wanted = {
            "output": output, "hr": photographs, "cache": cache, "features": 8, "blocks": 1, "growth": 4,
            "steps": 45, "batch": 4, "crop": 8, "learning-rate": 1e-3, "log-every": 1, "save-every": 15,
            "threads": 1, "discriminator-features": 4, "perceptual-weight": 0,
        }  # fmt: skip
        given = [f"--{name}={value}" for name, value in (wanted | keys).items() if value is not True]
        return given + [f"--{name}" for name, value in keys.items() if value is True]

    return make


@pytest.fixture
def run(fork):
    """Run the command in a process of its own, to its end."""

    def ended(arguments, **options):
        process = fork(COMMAND, arguments, **options)
        process.wait()
        return process

    return ended


@pytest.fixture
def run_as_two(fork):
    """Run the command as two processes that train together, as `accelerate launch` and `torchrun` start them."""

    def ended(arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        both = [fork(COMMAND, arguments, env={**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
        for process in both:
            process.wait()
        return both

    return ended


def _losses(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("l1", "gan", "discriminator") if name in line} for line in lines]


@pytest.mark.parametrize("stage", ["psnr", "gan"])
def test_a_training_killed_and_resumed_ends_bit_equal_to_a_whole_one(
    fork, arguments, tmp_path, capsys, stage
):
    """Exact resume: optimisers, averages, discriminator and data go on as if nothing had been."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(arguments(whole, stage=stage)) == 0
    process = fork(COMMAND, arguments(broken, stage=stage))
    # Killed somewhere after the first state, with steps in its log that the resumed run takes again.
    log = broken / "log.jsonl"
    while not (broken / "state-00000015").exists() or len(log.read_text().splitlines()) < 18:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (broken / "state-00000045").exists(), "it was killed too late to show anything"
    assert main(arguments(broken, stage=stage, resume=True)) == 0
    assert "going on from" in capsys.readouterr().out
    for name in ("model.safetensors", "state-00000045/model.safetensors"):
        one, other = load_file(whole / name), load_file(broken / name)
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert _losses(whole) == _losses(broken)


@pytest.mark.parametrize("keys", [{"stage": "psnr"}, {"stage": "gan", "discriminator": "unet"}])
def test_two_processes_have_the_loss_curve_of_one(run, run_as_two, arguments, tmp_path, keys):
    """The global batch decides, not how it is shared out; the order of float sums is all that may differ."""
    keys = keys | {"steps": 10, "save-every": 10, "device": "cpu"}
    # Accelerate takes one device a process.
    assert run(arguments(tmp_path / "one", **keys)).returncode == 0
    first, second = run_as_two(arguments(tmp_path / "two", **keys))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert (first.stdout + second.stdout).count("step 10/10") == 1, "the second process is silent"
    for one, other in zip(_losses(tmp_path / "one"), _losses(tmp_path / "two"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=2e-4)


def test_processes_that_do_not_divide_the_batch_are_refused(run_as_two, arguments, tmp_path):
    """A smaller batch in silence would be another training."""
    first, second = run_as_two(arguments(tmp_path / "run", batch=5, device="cpu"))
    assert 0 not in (first.returncode, second.returncode)
    why = "batch is 5, which 2 processes times accumulate 1 do not divide; give a multiple of 2"
    assert why in first.stderr + second.stderr


def test_a_full_disk_leaves_the_state_before_whole(run, arguments, tmp_path):
    """What was there is what the training goes on from."""
    output = tmp_path / "run"
    assert main(arguments(output, steps=10)) == 0
    kept = {path.name: path.read_bytes() for path in (output / "state-00000010").iterdir()}
    # No file may grow beyond this: the weights do not fit.
    limit = len(kept["model.safetensors"]) // 2
    full = run(arguments(output, resume=True, steps=20, **{"log-every": 20}), limit=limit)
    assert full.returncode == 1
    (line,) = full.stderr.splitlines()
    assert line.startswith("esrgan-train: the state of step 15 cannot be written to ")
    assert line.endswith(f"{output / 'state-00000010'} is whole; free some space and go on with --resume")
    assert {path.name: path.read_bytes() for path in (output / "state-00000010").iterdir()} == kept
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    assert main(arguments(output, resume=True, steps=20)) == 0


def test_mixed_precision_trains_close_to_fp32(run, arguments, tmp_path):
    """It rounds; it must neither be ignored nor lead elsewhere, and what is shipped is fp32."""
    # Accelerate takes one precision a process.
    for amp in ("no", "bf16"):
        done = run(arguments(tmp_path / amp, amp=amp, steps=40, device="cpu"))
        assert done.returncode == 0, done.stderr
    exact, mixed = _losses(tmp_path / "no"), _losses(tmp_path / "bf16")
    assert exact != mixed
    assert mixed[-1]["l1"] == pytest.approx(exact[-1]["l1"], rel=0.1)
    weights = load_file(tmp_path / "bf16" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_fp16_without_a_gpu_is_refused_in_one_line(run, arguments, tmp_path):
    """Accelerate would train in fp32 and say nothing."""
    refused = run(arguments(tmp_path / "run", amp="fp16", device="cpu"))
    assert refused.returncode == 1
    assert (
        refused.stderr == "esrgan-train: amp is fp16, which needs a GPU; on the CPU bf16 and no are allowed\n"
    )
    assert not (tmp_path / "run").exists()


def test_worker_processes_cut_the_same_crops(arguments, tmp_path):
    """How many workers there are is a matter of speed only."""
    for workers in (0, 2):
        assert main(arguments(tmp_path / str(workers), workers=workers, steps=20, augment=True)) == 0
    assert _losses(tmp_path / "0") == _losses(tmp_path / "2")


def test_the_command_interpolates(arguments, tmp_path):
    """The command of the README and of ESRGAN's section 3.4."""
    for name, seed in (("psnr", 1), ("gan", 2)):
        assert main(arguments(tmp_path / name, seed=seed, steps=1)) == 0
    models = [str(tmp_path / name / "model.safetensors") for name in ("psnr", "gan")]
    assert main(["interpolate", *models, "--alpha", "0.2", "-o", str(tmp_path / "mixed.safetensors")]) == 0
    one, other, mixed = (load_file(path) for path in (*models, tmp_path / "mixed.safetensors"))
    torch.testing.assert_close(
        mixed["conv_hr.weight"], 0.8 * one["conv_hr.weight"] + 0.2 * other["conv_hr.weight"]
    )
