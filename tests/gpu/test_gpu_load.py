"""What other threads, other streams and other programs do to work in flight."""

import gc
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from esrgan_deploy import Upscaler
from esrgan_deploy.runtime import SessionOptions, open_session

SIDES = (64, 80, 48, 96, 72, 56)
"""More shapes than a slot keeps graphs of, so that each is captured again and again."""


def disturb(kind: str) -> None:
    """Do once what a host program may do at any moment, in this thread."""
    if not torch.cuda.is_available():
        time.sleep(1e-3)
        return
    from cuda.bindings import driver

    (status, context) = driver.cuDevicePrimaryCtxRetain(0)
    assert int(status) == 0
    driver.cuCtxSetCurrent(context)
    # The host program is not asked whether we capture: its own calls may fail then, and that is its affair.
    if kind == "synchronise":
        driver.cuCtxSynchronize()
    elif kind == "allocate and free":
        status, pointer = driver.cuMemAlloc(1 << 20)
        if int(status) == 0:
            driver.cuMemFree(pointer)
    elif kind == "context":
        made = driver.cuCtxCreate(None, 0, 0)
        if int(made[0]) == 0:
            driver.cuCtxDestroy(made[1])
    driver.cuDevicePrimaryCtxRelease(0)


@pytest.mark.parametrize("kind", ["synchronise", "allocate and free", "context", "collect"])
def test_other_threads_disturb_no_capture(opened, picture, record, repeats, backend, case, kind):
    """A host program waits for its device, or allocates, while a graph is captured here: no frame may be wrong."""
    session = opened(backend, *case)
    frames = [picture(side, side, seed) for seed, side in enumerate(SIDES)]
    stop = threading.Event()
    done = 0

    def beside() -> None:
        nonlocal done
        while not stop.is_set():
            if kind == "collect":
                gc.collect()
                time.sleep(0.02)
            else:
                disturb(kind)
            done += 1

    wrong: list[tuple[int, int]] = []
    with Upscaler(session, tile=0, streams=1) as up:
        expected = [up.upscale(frame) for frame in frames]
    thread = threading.Thread(target=beside)
    with warnings.catch_warnings(record=True) as heard, Upscaler(session, tile=0, streams=2) as up:
        warnings.simplefilter("always")
        thread.start()
        try:
            for turn in range(max(repeats // 20, 1)):
                for number, made in enumerate(up.stream(frames)):
                    difference = int(np.abs(made.astype(int) - expected[number]).max())
                    wrong += [(turn, number)] if difference > 1 else []
        finally:
            stop.set()
            thread.join()
        record(
            disturbed=done, lost=list(up.stats.lost_devices), warned=[str(one.message) for one in heard][:4]
        )
        assert up.stats.lost_devices == ()
    assert wrong == []


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_one_slot_over_changing_shapes_is_as_without_a_graph(artefact, opened, picture, backend):
    """A graph holds addresses and the state of a context: one launched for another shape is another picture."""
    graphed = opened(backend, "fp16", "uint8")
    plain = open_session(artefact(backend, "fp16", "uint8"), SessionOptions(cuda_graph=False))
    slots = graphed.slot(), plain.slot()
    order = [*SIDES, *SIDES[::-1], *(side for side in SIDES for _ in range(3))]
    for seed, side in enumerate(order):
        made = []
        for slot in slots:
            slot.prepare((1, side, side))[...] = picture(side, side, seed)
            slot.start()
            made.append(slot.finish().batch.copy())
        np.testing.assert_array_equal(made[0], made[1], err_msg=f"side {side}, number {seed}")
    for slot in slots:
        slot.close()
    plain.close()


def test_three_slots_and_sixteen_threads_are_as_one_slot(opened, picture, record, repeats, backend, case):
    """200 frames each: what two slots share, or a context that is current in the wrong thread, shows by then."""
    session = opened(backend, *case)
    frames = [picture(40 + seed % 3 * 8, 48, seed) for seed in range(16)]
    with Upscaler(session, tile=0, streams=1) as up:
        expected = [up.upscale(frame) for frame in frames]
    each = max(repeats // 5, 1)
    with Upscaler(session, tile=0, streams=3) as up, ThreadPoolExecutor(16) as pool:

        def wrong(number: int) -> int:
            made = (up.upscale(frames[number]).astype(int) for _ in range(each))
            return sum(np.abs(one - expected[number]).max() > 1 for one in made)

        found = list(pool.map(wrong, range(16)))
    record(frames=16 * each, wrong=int(sum(found)))
    assert not any(found)


def test_an_array_outlives_the_stream_that_it_was_made_on(opened, picture, batch_for, backend, case):
    """Freed on a destroyed stream, it takes the process with it, or the memory of somebody else."""
    session = opened(backend, *case)
    lr = picture(64, 80)
    batch = batch_for(session, lr)
    expected = session.run(batch.cpu().numpy()).astype(np.float32)
    with Upscaler(session) as up:
        if not torch.cuda.is_available():
            made = up.run(batch)
        else:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                # Longer than all that follows: the work waits behind it while the stream's owner lets go.
                torch.cuda._sleep(400_000_000)
                made = up.run(batch, stream=stream)
            stream.synchronize()
            del stream
            gc.collect()
        seen = torch.from_dlpack(made).cpu().float().numpy()
        del made
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        again = up.upscale(lr)
    assert np.abs(seen - expected).max() <= (1 if session.info.form == "uint8" else 0.01)
    assert again.shape[2] == 3


def test_an_illegal_address_is_one_line(artefact, opened, record, backend, case):
    """Somebody else's kernel broke the context: the next frame is refused, and the process neither hangs nor dies."""
    opened(backend, *case).close()
    if not torch.cuda.is_available():
        pytest.skip("a context of a GPU is needed to break it")
    pytest.importorskip("cupy")
    code = (
        "import sys, cupy, numpy as np; from esrgan_deploy import EsrganDeployError, Upscaler\n"
        "options = {'precision': 'fp16'} if sys.argv[1].endswith(('.pth', '.safetensors')) else {}\n"
        "frame = np.zeros((48, 48, 3), np.uint8)\n"
        "up = Upscaler(sys.argv[1], tile=0, **options)\n"
        "up.upscale(frame); up.upscale(frame)\n"
        "bad = cupy.RawKernel('extern \"C\" __global__ void bad(int* p) { *p = 1; }', 'bad')\n"
        "bad((1,), (1,), (cupy.uint64(8),))\n"
        "try: up.upscale(frame); print('answered')\n"
        "except EsrganDeployError as error: print(type(error).__name__, error)\n"
        "up.close()\n"
    )
    path = artefact(backend, *case)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    record(status=done.returncode, said=done.stdout.strip()[:300])
    assert done.returncode == 0, done.stderr[-1000:]
    assert len(done.stdout.strip().splitlines()) == 1
    assert not done.stdout.startswith("answered")


def test_two_cards_share_one_queue(artefact, opened, picture, record, backend, case):
    """In order, and each frame as the first card alone makes it."""
    opened(backend, *case).close()
    if torch.cuda.device_count() < 2:
        pytest.skip(f"there are {torch.cuda.device_count()} GPUs here, and two are needed")
    frames = [picture(64, 64, seed) for seed in range(24)]
    path = artefact(backend, *case)
    precision = "fp16" if backend == "pytorch" else None
    with Upscaler(path, devices=[0], precision=precision) as one:
        expected = [one.upscale(frame) for frame in frames]
    with Upscaler(path, devices=[0, 1], precision=precision) as two:
        for number, (a, b) in enumerate(zip(expected, two.stream(frames), strict=True)):
            assert np.abs(a.astype(int) - b).max() <= 1, f"frame {number}"
        record(lost=list(two.stats.lost_devices))
