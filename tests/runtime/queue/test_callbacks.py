"""What a callback may do with the Upscaler that calls it: nothing in it waits for itself."""

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest

from esrgan_deploy import InferenceError, Upscaler

PATIENCE = 60
"""Seconds after which something has hung."""


def frame(value: int, side: int = 12) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def in_time(run: Callable[[], Any]) -> Any:
    """Run it in a thread of its own and return what it returns; a hang fails the test and not the suite."""
    done: Future[Any] = Future()

    def body() -> None:
        try:
            done.set_result(run())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return done.result(timeout=PATIENCE)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("tile", [0, 40])
def test_a_progress_may_close(sessions, slots, tile):
    """A window that is closed while its progress bar moves: the picture is finished, and then all is released."""
    session = sessions.NearestSession(slots=slots, most=40)
    up = Upscaler(session, tile=tile, halo=2, streams=slots)

    def progress(done: int, total: int) -> None:
        up.close()

    made = in_time(lambda: up.upscale(frame(7, 36 if tile == 0 else 100), progress=progress))
    assert (made == 7).all()
    in_time(up.close)
    assert session.open_slots == 0
    with pytest.raises(InferenceError, match="closed"):
        up.upscale(frame(1))


@pytest.mark.parametrize("slots", [1, 3])
def test_what_is_added_to_a_future_may_close_and_the_others_are_finished(sessions, slots):
    """With one slot the worker that calls back is the one that has the other pictures still to do."""
    session = sessions.NearestSession(slots=slots, stage=0.005)
    up = Upscaler(session, streams=slots)
    futures = [up.submit(frame(n)) for n in range(4)]
    futures[0].add_done_callback(lambda _: up.close())
    for number, future in enumerate(futures):
        assert (future.result(timeout=PATIENCE) == number).all()
    in_time(up.close)
    assert session.open_slots == 0


def test_a_callback_may_submit_beside_a_second_submitter(sessions):
    """The other one took the place that became free: a callback that waits for the next keeps the worker from it."""
    session = sessions.NearestSession(slots=1, stage=0.002)
    made: list[Future[Any]] = []
    called = threading.Semaphore(0)

    def scenario() -> None:
        with Upscaler(session, streams=1) as up:

            def another(done: Future[Any]) -> None:
                made.append(up.submit(frame(100 + int(done.result()[0, 0, 0]))))
                called.release()

            for n in range(30):
                up.submit(frame(n)).add_done_callback(another)
            for _ in range(30):
                called.acquire()

    in_time(scenario)
    assert sorted(int(future.result(timeout=PATIENCE)[0, 0, 0]) for future in made) == list(range(100, 130))


@pytest.mark.parametrize("name", ["upscale", "stream"])
def test_what_could_only_wait_is_refused_in_a_callback(sessions, name):
    """One line that says what to do, in place of a program that stands still."""
    session = sessions.NearestSession(slots=1, most=40)
    heard: list[str] = []

    def scenario() -> Any:
        with Upscaler(session, tile=40, halo=2, streams=1) as up:

            def progress(done: int, total: int) -> None:
                try:
                    up.upscale(frame(3, 100)) if name == "upscale" else list(up.stream([frame(3, 100)]))
                except InferenceError as error:
                    heard.append(str(error))

            return up.upscale(frame(7, 100), progress=progress)

    assert (in_time(scenario) == 7).all()
    assert heard
    assert set(heard) == {
        f"{name}() in a callback of the same Upscaler would wait for what called it; use submit() there"
    }


@pytest.mark.parametrize("by", ["close", "holder"])
def test_those_who_wait_for_a_cancelled_future_are_told(sessions, by):
    """`concurrent.futures.wait` counts a future as ended only when its executor has said so."""
    session = sessions.NearestSession(slots=1, stage=0.02)
    up = Upscaler(session, streams=1)
    futures = [up.submit(frame(n)) for n in range(4)]
    if by == "holder":
        assert futures[-1].cancel()
    threading.Thread(target=up.close, kwargs={"cancel": True}, daemon=True).start()
    done, waiting = concurrent.futures.wait(futures, timeout=PATIENCE)
    assert (len(done), waiting) == (4, set())
    with pytest.raises(CancelledError):
        futures[-1].result()
    in_time(up.close)
    assert session.open_slots == 0


def test_a_callback_that_closes_does_not_close_under_the_others(sessions):
    """Sixteen threads with a picture each in their own thread; one of them closes in mid-picture."""
    session = sessions.NearestSession(slots=3, stage=0.002)
    up = Upscaler(session, tile=0, streams=3)
    ready = threading.Barrier(16)

    def work(number: int) -> object:
        ready.wait()
        try:
            made = up.upscale(
                frame(number, 20), progress=lambda done, total: up.close() if number == 5 else None
            )
        except InferenceError as error:
            return str(error)
        return bool((made == number).all())

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = [future.result(timeout=PATIENCE) for future in [pool.submit(work, n) for n in range(16)]]
    assert set(answers) <= {True, "this Upscaler is closed; open another one"}
    assert answers[5] is True
    in_time(up.close)
    assert session.open_slots == 0
