"""The queue: order, overlap, failures, threads, several devices. Pictures are real, the device is told what to do."""

import asyncio
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esrgan_deploy import DeviceLostError, InferenceError, OutOfMemoryError, Upscaler
from esrgan_deploy.runtime import open_output


def squares(picture: np.ndarray, scale: int = 2) -> np.ndarray:
    """What a nearest-neighbour net makes."""
    return np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)


def frames_of(number: int, *, side: int = 12) -> list[np.ndarray]:
    """Frames that differ from each other everywhere."""
    return [np.full((side + n % 5, side, 3), n, np.uint8) for n in range(number)]


def film_of(number: int, taken: list[int]) -> Iterator[np.ndarray]:
    """Frames that are read one after the other, and which of them were."""
    for n, frame in enumerate(frames_of(number)):
        taken.append(n)
        yield frame


def after(number: int, error: type[Exception], *, times: int = 10**9) -> Callable[[int], None]:
    """A failure from one batch on."""
    lock, left = threading.Lock(), [times]

    def fail(batch: int) -> None:
        with lock:
            if batch < number or left[0] <= 0:
                return
            left[0] -= 1
        raise error(f"batch {batch} failed")

    return fail


def test_upload_compute_and_download_overlap(sessions):
    """If one waited for another, a film would take three times as long. Counted, not timed."""
    session = sessions.NearestSession(stage=0.02)
    together = []
    inside = [0]
    guard = threading.Lock()
    plain = time.sleep

    def counted(seconds: float) -> None:
        with guard:
            inside[0] += 1
            together.append(inside[0])
        plain(seconds)
        with guard:
            inside[0] -= 1

    sessions.time.sleep, before = counted, sessions.time.sleep
    try:
        with Upscaler(session) as up:
            made = list(up.stream(frames_of(20)))
    finally:
        sessions.time.sleep = before
    assert len(made) == 20
    assert max(together) == 3
    assert session.most_flying == 3


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12), st.integers(1, 4)
)
def test_frames_of_any_sizes_come_in_order_through_any_number_of_slots(sessions, sizes, streams):
    """Frames of a film that swap places; slots are used again for other shapes, and a stale buffer would show."""
    random = np.random.default_rng(1)
    frames = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    with Upscaler(sessions.NearestSession(stage=0.0002), tile=16, halo=2, streams=streams) as up:
        for lr, hr in zip(frames, up.stream(iter(frames)), strict=True):
            np.testing.assert_array_equal(hr, squares(lr))


def test_no_more_frames_are_taken_than_keep_the_device_busy(sessions):
    """A film that is read faster than it is enlarged would fill the memory."""
    taken: list[int] = []
    with Upscaler(sessions.NearestSession(stage=0.002), streams=3) as up:
        for seen, _ in enumerate(up.stream(film_of(30, taken))):
            assert len(taken) - seen <= 3 + 2


def test_submit_waits_when_too_much_is_on_its_way(sessions):
    """A thousand pictures submitted in a loop must not all lie in memory."""
    gate = threading.Event()
    session = sessions.NearestSession(fail=lambda _: gate.wait(10) and None, slots=2)
    with Upscaler(session) as up:
        done = []

        def loop() -> None:
            done.extend(up.submit(frame) for frame in frames_of(30))

        thread = threading.Thread(target=loop)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert len(done) == 2 * 2
        gate.set()
        thread.join()
        assert [int(future.result()[0, 0, 0]) for future in done] == list(range(30))


def test_a_consumer_that_stops_takes_nothing_more(sessions):
    """`break` in the loop is how a preview ends; the threads must not run on."""
    session = sessions.NearestSession(stage=0.002)
    taken: list[int] = []
    with Upscaler(session) as up:
        for n, _ in enumerate(up.stream(film_of(250, taken))):
            if n == 3:
                break
        # CPython closes the generator here.
        count = len(taken)
        assert count < 12
        np.testing.assert_array_equal(up.upscale(frames_of(1)[0]), squares(frames_of(1)[0]))
        assert len(taken) == count
    assert session.open_slots == 0


def test_what_the_iterator_raises_comes_after_the_frames_before_it(sessions):
    """A film that is cut off half-way still gives its first half, and then its own error."""

    def film() -> Iterator[np.ndarray]:
        yield from frames_of(5)
        raise OSError("the disk is gone")

    seen = []
    with Upscaler(sessions.NearestSession(stage=0.001)) as up:
        with pytest.raises(OSError, match="disk is gone"):
            seen.extend(int(hr[0, 0, 0]) for hr in up.stream(film()))
        assert seen == [0, 1, 2, 3, 4]
        assert list(up.stream(frames_of(2)))


def test_a_frame_that_is_no_picture_ends_the_stream_there(sessions):
    """And not some frames earlier."""
    frames: list[Any] = [*frames_of(4), np.zeros((3, 3, 9), np.uint8), *frames_of(4)]
    seen = 0
    with Upscaler(sessions.NearestSession()) as up, pytest.raises(InferenceError, match="no picture"):
        for _ in up.stream(frames):
            seen += 1
    assert seen == 4


def test_asyncio_awaits_a_future(sessions):
    """Servers embed it so; the loop must go on meanwhile."""
    ticks = 0

    async def serve(up: Upscaler) -> list[np.ndarray]:
        nonlocal ticks
        work = [asyncio.wrap_future(up.submit(frame)) for frame in frames_of(3)]
        work += [asyncio.create_task(asyncio.to_thread(up.upscale, frame)) for frame in frames_of(3)]
        gathered = asyncio.gather(*work)
        while not gathered.done():
            ticks += 1
            await asyncio.sleep(0.001)
        return await gathered

    with Upscaler(sessions.NearestSession(stage=0.01)) as up:
        made = asyncio.run(serve(up))
    for lr, hr in zip([*frames_of(3), *frames_of(3)], made, strict=True):
        np.testing.assert_array_equal(hr, squares(lr))
    assert ticks > 3


def test_a_future_that_has_not_begun_can_be_cancelled(sessions):
    """A request that nobody waits for any more is not worth a GPU's time."""
    gate = threading.Event()
    session = sessions.NearestSession(fail=lambda _: gate.wait(10) and None, slots=1)
    with Upscaler(session) as up:
        first, second, third = (up.submit(frame) for frame in frames_of(3))
        while session.batches == 0:
            time.sleep(0.001)
        assert second.cancel()
        gate.set()
        assert int(first.result()[0, 0, 0]) == 0
        assert int(third.result()[0, 0, 0]) == 2
    assert second.cancelled()
    assert session.batches == 2


def test_64_threads_on_one_upscaler(sessions, noise):
    """Each gets its own picture back, and no more batches fly than there are slots."""
    session = sessions.NearestSession(stage=0.0005, slots=3)

    def client(seed: int) -> None:
        for round_ in range(4):
            lr = noise(9 + seed % 7, 30 + round_, 3, seed=seed * 10 + round_)
            hr = up.upscale(lr) if round_ % 2 else up.submit(lr).result()
            np.testing.assert_array_equal(hr, squares(lr))

    with Upscaler(session, tile=24, halo=2) as up, ThreadPoolExecutor(64) as pool:
        list(pool.map(client, range(64)))
        assert up.stats.pictures == 256
    assert session.most_flying <= 3
    assert session.open_slots == 0


def test_a_single_batch_runs_in_the_callers_thread(sessions):
    """Handing a small picture over to a worker costs more than enlarging it."""
    threads = set()
    session = sessions.NearestSession(fail=lambda _: threads.add(threading.current_thread()))
    with Upscaler(session) as up:
        before = threading.active_count()
        up.upscale(frames_of(1)[0])
        assert threading.active_count() == before
    assert threads == {threading.current_thread()}


def test_a_failing_batch_fails_its_picture_only(sessions):
    """One bad request must not take the service down."""
    session = sessions.NearestSession(fail=after(2, InferenceError, times=1), slots=1)
    with Upscaler(session) as up:
        futures = [up.submit(frame) for frame in frames_of(5)]
        failed = [future for future in futures if future.exception()]
        assert len(failed) == 1
        assert "batch 2 failed" in str(failed[0].exception())
        assert session.open_slots == 1
    assert session.made_slots == 2
    assert session.open_slots == 0


def test_nothing_is_written_after_the_error_was_told(sessions):
    """The caller may use its array for something else by then."""
    session = sessions.NearestSession(stage=0.01, fail=after(1, InferenceError, times=1), slots=3)
    out = np.zeros((200, 200, 3), np.uint8)
    with Upscaler(session, tile=20, halo=2) as up:
        with pytest.raises(InferenceError, match=r"batch \d failed"):
            up.upscale(np.full((100, 100, 3), 9, np.uint8), out=out)
        out[:] = 1
        assert session.flying == 0
        time.sleep(0.05)
        assert (out == 1).all()


def test_a_lost_device_is_drained_and_the_others_go_on(sessions):
    """A card that falls off the bus in the middle of a film."""
    good = sessions.NearestSession(stage=0.002, device=0)
    bad = sessions.NearestSession(stage=0.002, device=1, fail=after(4, DeviceLostError))
    frames = frames_of(40)
    with Upscaler([good, bad]) as up:
        with pytest.warns(RuntimeWarning, match="device 1 is lost"):
            made = [int(hr[0, 0, 0]) for hr in up.stream(frames)]
        assert made == list(range(40))
        assert len(up.stats.lost_devices) == 1
        assert "device 1" in up.stats.lost_devices[0]
        assert bad.open_slots == 0
        assert good.batches >= 36
    assert good.open_slots == 0


def test_when_every_device_is_lost_all_pictures_say_so(sessions):
    """Whoever waits on a future must not wait for ever."""
    session = sessions.NearestSession(stage=0.001, fail=after(3, DeviceLostError))
    with Upscaler(session) as up:
        futures = [up.submit(frame) for frame in frames_of(4)]
        errors = [future.exception(timeout=10) for future in futures]
        assert errors[0] is None
        assert sum(isinstance(error, DeviceLostError) for error in errors) == 1
        # And a caller who waits for a place is told as well.
        with pytest.raises(InferenceError, match="lost"):
            for frame in frames_of(50):
                up.submit(frame)
        with pytest.raises(InferenceError, match="every device of this Upscaler is lost"):
            up.upscale(frames[0] if (frames := frames_of(1)) else None)
    assert session.open_slots == 0


def test_a_picture_is_spread_over_several_devices(sessions, noise):
    """One large picture would otherwise leave the second card idle."""
    pair = [sessions.NearestSession(stage=0.002, device=n) for n in range(2)]
    lr = noise(150, 150, 3)
    with Upscaler(pair, tile=20, halo=2) as up:
        np.testing.assert_array_equal(up.upscale(lr), squares(lr))
    assert min(session.batches for session in pair) > 10


def test_memory_that_runs_out_halves_the_tile_and_says_so(sessions, noise):
    """Users see a black picture or a traceback elsewhere; here they see which setting to change."""
    session = sessions.NearestSession(limit=30 * 30, slots=2)
    lr = noise(90, 90, 3)
    with Upscaler(session, tile=80, halo=4) as up:
        with pytest.warns(RuntimeWarning, match="memory ran out") as said:
            np.testing.assert_array_equal(up.upscale(lr), squares(lr))
        assert [str(one.message).partition("Set ")[2].partition(" ")[0] for one in said] == [
            "tile=40",
            "tile=20",
        ]
        assert up.stats.halvings == 2
        session.shapes.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(up.upscale(lr), squares(lr))
        assert set(session.shapes) == {(1, 20, 20)}


@pytest.mark.parametrize("tile", [0, "auto"])
def test_memory_runs_out_on_a_picture_in_one_piece(sessions, noise, tile):
    """tile=0 asks for the whole picture; tiles are better than an error."""
    session = sessions.NearestSession(limit=60 * 60, slots=1)
    lr = noise(100, 100, 3)
    with Upscaler(session, tile=tile, halo=4) as up, pytest.warns(RuntimeWarning, match="Set tile=54"):
        np.testing.assert_array_equal(up.upscale(lr), squares(lr))


def test_memory_that_never_suffices_is_the_original_error(sessions, noise):
    """Halving must end."""
    session = sessions.NearestSession(limit=1)
    with Upscaler(session, tile=64, halo=8) as up:
        with (
            pytest.warns(RuntimeWarning, match="memory ran out"),
            pytest.raises(OutOfMemoryError, match="do not fit"),
        ):
            up.upscale(noise(90, 90, 3))
        assert session.flying == 0


def test_memory_that_runs_out_in_mid_stream_keeps_the_order(sessions):
    """Another program took the memory at the hundredth frame."""
    session = sessions.NearestSession(fail=after(20, OutOfMemoryError, times=1), slots=3)
    frames = [np.full((60, 60, 3), n, np.uint8) for n in range(40)]
    with Upscaler(session, tile=64, halo=4) as up, pytest.warns(RuntimeWarning, match="memory"):
        made = list(up.stream(frames))
    for lr, hr in zip(frames, made, strict=True):
        np.testing.assert_array_equal(hr, squares(lr))


def test_slots_that_do_not_fit_are_done_without(sessions):
    """Three contexts may not fit where two do; that is no reason for smaller tiles."""
    session = sessions.NearestSession(stage=0.002, slots=3)
    make = session.slot

    def slot() -> Any:
        if session.made_slots >= 2:
            raise OutOfMemoryError("no room for a third context")
        return make()

    session.slot = slot
    with Upscaler(session) as up:
        with pytest.warns(RuntimeWarning, match="streams=2"):
            made = [int(hr[0, 0, 0]) for hr in up.stream(frames_of(20))]
        assert made == list(range(20))
        assert up.stats.halvings == 0


def test_buffers_that_do_not_fit_beside_others_are_done_without(sessions):
    """A GPU has no memory for a third batch of a size that went through alone: fewer at once, not smaller tiles."""
    session = sessions.NearestSession(stage=0.002, slots=3)
    make = session.slot

    def slot() -> Any:
        made = make()
        if session.open_slots > 2:
            made.prepare = lambda shape: (_ for _ in ()).throw(OutOfMemoryError("no room for a third batch"))
        return made

    session.slot = slot
    frames = [np.full((12, 12, 3), n, np.uint8) for n in range(20)]
    with Upscaler(session) as up:
        up.upscale(frames[0])
        with pytest.warns(RuntimeWarning, match="streams=2"):
            made = [int(hr[0, 0, 0]) for hr in up.stream(frames)]
        assert made == list(range(20))
        assert up.stats.halvings == 0
        assert session.open_slots == 2


def test_where_not_even_one_batch_fits_that_is_the_error(sessions):
    """With none in flight at all the caller would wait for ever."""
    session = sessions.NearestSession(slots=2)

    def slot() -> Any:
        raise OutOfMemoryError("no room for one context")

    session.slot = slot
    with Upscaler(session, tile=12, halo=2) as up, pytest.warns(RuntimeWarning, match="memory"):
        error = up.submit(frames_of(1)[0]).exception(timeout=60)
    assert isinstance(error, OutOfMemoryError)


def test_progress_begins_anew_with_smaller_tiles(sessions, noise):
    """A bar that counts the tiles of both would stand at 110 %."""
    session = sessions.NearestSession(fail=after(3, OutOfMemoryError, times=1), slots=1)
    seen: list[tuple[int, int]] = []
    with Upscaler(session, tile=40, halo=4) as up, pytest.warns(RuntimeWarning, match="memory ran out"):
        up.upscale(noise(100, 100, 3), progress=lambda done, total: seen.append((done, total)))
    (_, first), (_, second) = seen[0], seen[-1]
    assert second > first
    assert seen == [(n, first) for n in (1, 2, 3)] + [(n, second) for n in range(1, second + 1)]


def test_a_warning_raised_as_an_error_fails_the_picture(sessions, noise):
    """With `-W error` a worker thread that died of it would leave the caller waiting for ever."""
    session = sessions.NearestSession(limit=30 * 30)
    with Upscaler(session, tile=80, halo=4) as up, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="memory ran out"):
            up.upscale(noise(90, 90, 3))


def test_what_a_progress_callback_raises_ends_the_picture(sessions, noise):
    """It is how a GUI cancels."""

    class Stop(Exception):  # noqa: N818
        pass

    def progress(done: int, total: int) -> None:
        if done > 3:
            raise Stop

    with Upscaler(sessions.NearestSession(), tile=20, halo=2) as up:
        with pytest.raises(Stop):
            up.upscale(noise(200, 200, 3), progress=progress)
        assert up.stats.batches < 20


def test_ctrl_c_waits_for_what_is_being_written(sessions, monkeypatch):
    """The array goes back to a caller who may free it."""
    session = sessions.NearestSession(stage=0.02, slots=2)
    with Upscaler(session, tile=20, halo=2) as up:
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            up.upscale(np.zeros((400, 400, 3), np.uint8))
        assert session.flying == 0
        assert session.batches < 300
        up.upscale(np.zeros((10, 10, 3), np.uint8))


def test_leaving_the_block_finishes_what_was_submitted(sessions):
    """As concurrent.futures' executors do; work that vanishes is worse than a wait."""
    session = sessions.NearestSession(stage=0.002)
    with Upscaler(session) as up:
        futures = [up.submit(frame) for frame in frames_of(5)]
    assert [int(future.result()[0, 0, 0]) for future in futures] == list(range(5))
    assert session.open_slots == 0
    assert session.closed == 0, "a session that was handed in is its owner's"


def test_an_exception_in_the_block_is_the_one_that_is_seen(sessions):
    """A close that fails as well must not hide why."""
    session = sessions.NearestSession(stage=0.005)
    make = session.slot

    def slot() -> Any:
        made = make()
        made.close = lambda: 1 / 0
        return made

    session.slot = slot
    future = None
    with pytest.raises(RuntimeError, match="the caller's"), Upscaler(session) as up:
        for frame in frames_of(8):
            future = up.submit(frame)
        raise RuntimeError("the caller's")
    assert future is not None
    with pytest.raises(CancelledError):
        future.result(timeout=10)


def test_what_has_begun_is_finished_and_what_has_not_is_cancelled(sessions):
    """A batch that is done all the same is not thrown away, and a future says truly what became of it."""
    gate = threading.Event()
    session = sessions.NearestSession(fail=lambda _: gate.wait(10) and None, slots=1)
    up = Upscaler(session, tile=16, halo=2)
    begun, waiting = (up.submit(frame) for frame in frames_of(2))
    while session.batches == 0:
        time.sleep(0.001)
    closing = threading.Thread(target=up.close, kwargs={"cancel": True})
    closing.start()
    while not waiting.cancelled():
        time.sleep(0.001)
    gate.set()
    closing.join(10)
    np.testing.assert_array_equal(begun.result(), squares(frames_of(1)[0]))
    assert waiting.cancelled()
    # Of a picture that has batches left there is no half.
    session = sessions.NearestSession(stage=0.02)
    up = Upscaler(session, tile=16, halo=2)
    large = up.submit(np.zeros((200, 200, 3), np.uint8))
    while session.batches == 0:
        time.sleep(0.001)
    up.close(cancel=True)
    assert isinstance(large.exception(), InferenceError)
    assert session.flying == session.open_slots == 0


def test_a_source_may_fill_one_buffer_again_and_again(sessions):
    """Decoders do; without a copy the frames that are on their way change into later ones."""
    buffer = np.empty((20, 20, 3), np.uint8)

    def film() -> Iterator[np.ndarray]:
        for n in range(12):
            buffer[:] = n
            yield buffer

    with Upscaler(sessions.NearestSession(stage=0.002)) as up:
        assert [int(hr[0, 0, 0]) for hr in up.stream(film())] == list(range(12))


@pytest.mark.parametrize("wrong", ["a.png", None, [[1]], 7])
def test_what_is_no_array_is_one_line(sessions, wrong):
    """A path, or a picture of another library, is the likely mistake."""
    with Upscaler(sessions.NearestSession()) as up:
        for call in (up.upscale, up.submit):
            with pytest.raises(InferenceError, match="numpy array"):
                call(wrong)
        with pytest.raises(InferenceError, match="numpy array"):
            up.upscale(frames_of(1)[0], out=[1])
        assert up.stats.pictures == 0


def test_close_twice_and_from_two_threads(sessions):
    """A server's shutdown hooks run into each other."""
    up = Upscaler(sessions.NearestSession(stage=0.002))
    for frame in frames_of(4):
        up.submit(frame)
    threads = [threading.Thread(target=up.close, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    up.close()
    for call in (up.upscale, up.submit, up.run):
        with pytest.raises(InferenceError, match="closed"):
            call(frames_of(1)[0])


def test_an_upscaler_that_is_forgotten_ends_its_threads(sessions):
    """Not everybody writes `with`."""
    session = sessions.NearestSession()
    before = threading.active_count()
    up = Upscaler(session, tile=16, halo=2)
    up.upscale(np.zeros((60, 60, 3), np.uint8))
    assert threading.active_count() > before
    del up
    gc.collect()
    assert threading.active_count() == before
    assert session.open_slots == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_is_refused_with_what_to_do(sessions):
    """CUDA and threads do not survive a fork: the child would hang without a word."""
    up = Upscaler(sessions.NearestSession())
    up.upscale(frames_of(1)[0])
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            up.upscale(frames_of(1)[0])
            os.write(write, b"it ran")
        except InferenceError as error:
            up.close()
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    said = b"".join(iter(lambda: os.read(read, 4096), b"")).decode()
    os.close(read)
    os.waitpid(child, 0)
    assert "spawn" in said
    np.testing.assert_array_equal(up.upscale(frames_of(1)[0]), squares(frames_of(1)[0]))
    up.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [({"streams": 0}, "streams"), ({"devices": []}, "devices"), ({"devices": [1, 1]}, "devices"),
     ({"devices": [-1]}, "device"), ({"devices": 0}, "a list"), ({"threads": 10**4}, "threads"),
     ({"threads": "2"}, "threads"), ({"tile": True}, "tile"), ({"compile": True}, "checkpoints"),
     ({"model": 5}, "path"), ({"rebuild": "always"}, "rebuild"), ({"precision": "fp8"}, "precision")],
)  # fmt: skip
def test_options_out_of_range_are_value_errors(options, says):
    """Before anything is opened."""
    with pytest.raises(ValueError, match=says):
        Upscaler(**options)


def test_run_goes_to_the_device_that_holds_the_array(sessions):
    """A copy from one card to another is what run() promises not to make."""

    array = np.zeros((1, 8, 8, 3), np.uint8)
    with Upscaler([sessions.NearestSession(device=n) for n in (3, -1)]) as up:
        assert up.run(array, stream=7, out="out") == (-1, array, 7, "out")
    with (
        Upscaler([sessions.NearestSession(device=n) for n in (0, 3)]) as up,
        pytest.raises(InferenceError, match="lies on device -1; this Upscaler has the devices 0, 3"),
    ):
        up.run(array)


def test_out_takes_the_result(sessions, noise, tmp_path):
    """A memory map holds what memory does not."""
    lr = noise(50, 40, 3)
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.uint8, (100, 80, 3))
    with Upscaler(sessions.NearestSession(), tile=16, halo=2) as up:
        assert up.upscale(lr, out=out) is out
        np.testing.assert_array_equal(out, squares(lr))
        for bad in (out[:-1], out.astype(np.uint16), np.broadcast_to(np.uint8(0), out.shape)):
            with pytest.raises(InferenceError, match="out is a"):
                up.upscale(lr, out=bad)
    with Upscaler(sessions.NearestSession()) as up:
        gray = np.zeros((6, 8), np.uint8)
        up.submit(lr[:3, :4, 0], out=gray).result()
        np.testing.assert_array_equal(gray, squares(lr[:3, :4, 0]))


def test_sessions_of_two_models_are_refused(sessions):
    """Half of the frames would come out in another size."""
    with pytest.raises(InferenceError, match="not one model"):
        Upscaler([sessions.NearestSession(scale=2), sessions.NearestSession(scale=4, device=1)])
    with pytest.raises(InferenceError, match="at least one"):
        Upscaler([])


def test_a_memory_map_is_let_go_of_row_by_row(sessions, tmp_path):
    """An output of 100 GiB would otherwise fill the memory before the system writes it out."""
    lr = np.tile(np.arange(250, dtype=np.uint8), 8)[None, :, None].repeat(3000, 0).repeat(3, 2)
    shape = (12000, 8000, 3)
    with (
        Upscaler(sessions.NearestSession(scale=4), tile=250, halo=5) as up,
        open_output(tmp_path / "large.npy", shape, np.uint8) as out,
    ):
        up.upscale(lr[:300], out=out[:1200])
        before = resident()
        up.upscale(lr, out=out)
        # Two rows of tiles, 23 MB each, are on their way; all of it is 288 MB.
        assert resident() - before < 160 * 2**20
    np.testing.assert_array_equal(np.load(tmp_path / "large.npy", mmap_mode="r")[::4, ::4], lr)


def resident() -> int:
    """Bytes of this process that are in memory, those of files among them."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024


def test_small_pictures_in_turn_share_a_slot(sessions):
    """A slot of its own for each is memory of the device, and most of what a picture of 16x16 would cost."""
    session = sessions.NearestSession()
    lr = frames_of(1)[0]
    with Upscaler(session) as up:
        up.upscale(lr)
        np.testing.assert_array_equal(up.upscale(lr), squares(lr))
        assert up.stats.pictures == up.stats.batches == 2
    assert session.made_slots == 1


@pytest.mark.parametrize(
    ("error", "answered"), [(InferenceError, False), (OutOfMemoryError, True), (DeviceLostError, True)]
)
def test_what_fails_at_once_is_answered_as_in_the_queue(sessions, error, answered):
    """The short way must not be the one on which a slot is lost, or a device's failure is the caller's."""
    session = sessions.NearestSession(fail=after(1, error, times=1), slots=1)
    lr = frames_of(1)[0]
    with Upscaler(session) as up:
        up.upscale(lr)
        if answered:
            np.testing.assert_array_equal(up.upscale(lr), squares(lr))
        else:
            with pytest.raises(InferenceError, match="batch 1 failed"):
                up.upscale(lr)
        # The slot that failed is closed, its place is free, and another one takes it.
        np.testing.assert_array_equal(up.upscale(lr), squares(lr))
        assert session.open_slots == 1
    assert session.made_slots == 2
    assert session.open_slots == 0
