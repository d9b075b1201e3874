"""Slots, streams, several threads: the pictures stay those of one batch at a time."""

import time

import numpy as np

from esrgan_deploy import Upscaler


def test_frames_in_flight_are_those_of_one_at_a_time(opened, picture, record, clock, backend, case):
    """Buffers that two batches share would mix two frames."""
    session = opened(backend, *case)
    frames = [picture(60, 80, seed) for seed in range(12)]
    with Upscaler(session, tile=0, streams=1) as one:
        expected = [one.upscale(frame) for frame in frames]
        alone = clock(lambda: [one.upscale(frame) for frame in frames])
    with Upscaler(session, tile=0, streams=3) as three:
        made = list(three.stream(frames))
        together = clock(lambda: list(three.stream(frames)))
    for number, (a, b) in enumerate(zip(expected, made, strict=True)):
        # cuDNN may choose another kernel for another stream; a mixed-up frame differs by far more.
        assert np.abs(a.astype(int) - b).max() <= 1, f"frame {number}"
    record(
        fps_one_slot=len(frames) / alone,
        fps_three_slots=len(frames) / together,
        provider=session.info.provider,
    )


def test_sizes_that_change_in_mid_stream(opened, picture, backend, case):
    """A graph that was captured for one shape must not be launched for another."""
    session = opened(backend, *case)
    frames = [picture(40 + 13 * (seed % 4), 64 + 7 * (seed % 3), seed) for seed in range(18)]
    with Upscaler(session, tile=0, streams=1) as one:
        expected = [one.upscale(frame) for frame in frames]
    with Upscaler(session, tile=0, streams=3) as up:
        for number, (a, b) in enumerate(zip(expected, up.stream(frames), strict=True)):
            assert np.abs(a.astype(int) - b).max() <= 1, f"frame {number}"


def test_memory_stays_where_it_is(opened, picture, record, repeats, backend, case):
    """A service runs for weeks. Device memory is read from the driver, so that no allocator's cache hides it."""
    session = opened(backend, *case)
    frame = picture(32, 32)
    with Upscaler(session) as up:
        for _ in range(repeats // 10):
            up.upscale(frame)
        before, started = _used(), time.perf_counter()
        for _ in range(repeats):
            up.upscale(frame)
        grown = _used() - before
        spent = (time.perf_counter() - started) / repeats
        record(frames=repeats, bytes_grown=grown, microseconds_per_frame=spent * 1e6)
    assert grown <= 2 * 2**20


def _used() -> int:
    import torch

    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free
