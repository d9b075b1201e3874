"""One device of an Upscaler: its session, and the slots that are free."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._files import PLANS
from esrgan_deploy.runtime.sessions import (
    Session,
    SessionInfo,
    SessionOptions,
    Slot,
    chooses_arithmetic,
    open_session,
)

__all__ = ["Lane", "borrowed_lanes", "close_quietly", "open_lanes", "refuse_idle"]


class Lane:
    """A session with up to a number of slots. Not locked: its scheduler holds its own lock around every call.

    Args:
        session: Closed with the lane if the lane owns it.
        slots: Batches in flight at most; None for what the session asks for.
        owned: Whether closing the lane closes the session.
    """

    def __init__(self, session: Session, *, slots: int | None = None, owned: bool = True) -> None:
        self.session = session
        self.most = session.info.slots if slots is None else slots
        self.lost = False
        # Pixels of the largest batch that was done: what fitted once fits, if fewer are in flight.
        self.proved = 0
        self._owned = owned
        self._idle: list[Slot] = []
        self.free = self.most

    @property
    def info(self) -> SessionInfo:
        """Of the session."""
        return self.session.info

    @property
    def open(self) -> bool:
        """Whether a batch could be begun now."""
        return not self.lost and self.free > 0

    def enter(self) -> Slot | None:
        """Take a place, with the slot that was used last: its buffers fit best. None where one has to be made."""
        self.free -= 1
        return self._idle.pop() if self._idle else None

    def enter_again(self) -> Slot | None:
        """Take a place with a slot that was used before; None, and no place, where there is none."""
        return self.enter() if self._idle else None

    def leave(self, slot: Slot | None) -> None:
        """Give a place back, with a slot that can be used again."""
        self.free += 1
        if slot is not None:
            self._idle.append(slot)

    def narrow(self) -> bool:
        """Allow one batch fewer in flight, by a place that was entered; False where that would leave none."""
        if self.most <= 1:
            return False
        self.most -= 1
        return True

    def take_idle(self) -> list[Slot]:
        """Hand over the slots that are free, to be closed."""
        idle, self._idle = self._idle, []
        return idle

    def close(self) -> None:
        """Close the session, if it is owned."""
        if self._owned:
            self.session.close()


def close_quietly(*slots: Slot) -> None:
    """Close slots of which nothing more is wanted, on a device that may be lost."""
    for slot in slots:
        # Even this may fail there, and the reason was said already.
        with contextlib.suppress(Exception):
            slot.close()


def open_lanes(
    path: Path,
    devices: Sequence[int],
    options: Sequence[SessionOptions],
    *,
    slots: int | None,
    verify: bool = False,
    insist: bool = False,
) -> list[Lane]:
    """Open one artefact on each device, and run its golden pairs there if asked to; all of them or none.

    Args:
        path: The artefact.
        devices: Their ordinals.
        options: How to open it, for each of them.
        slots: Batches in flight on each.
        verify: Whether to run the golden pairs.
        insist: Whether it must compute on those devices, because somebody named them.

    Raises:
        InferenceError: One cannot be opened, or computes elsewhere than on the device that was named.
        EsrganDeployError: As from `open_session` and `verify_golden`.
    """
    lanes: list[Lane] = []
    try:
        for device, how in zip(devices, options, strict=True):
            session = open_session(path, how)
            lanes.append(Lane(session, slots=slots))
            if insist and session.info.device != device:
                raise InferenceError(
                    f"{path.name} runs on {session.info.provider}, not on the GPU {device} of devices="
                    f"{list(devices)}; leave devices out, or give a plan or the provider cuda"
                )
            if verify:
                from esrgan_deploy.runtime.sessions import verify_golden

                verify_golden(session, path)
    except BaseException:
        for lane in lanes:
            lane.close()
        raise
    return lanes


def refuse_idle(path: Path, options: SessionOptions) -> None:
    """Refuse options of PyTorch and OpenVINO for what they do not run, and of foreign graphs for what is none.

    Raises:
        ValueError: One was given for another kind of artefact.
    """
    suffix = path.suffix.lower()
    graph = suffix == ".onnx" and chooses_arithmetic(options.providers)
    if suffix in (".onnx", *PLANS) and (options.compile or (options.precision is not None and not graph)):
        raise ValueError(
            "precision and compile are for checkpoints, which PyTorch runs, and precision for graphs in the provider "
            f"openvino; {path.name} computes as it was exported"
        )
    if suffix != ".onnx" and options.describes:
        raise ValueError(f"range, layout and output_name are for .onnx graphs, and {path.name} is none")


def borrowed_lanes(sessions: Sequence[Session], *, slots: int | None) -> list[Lane]:
    """Return lanes over sessions that somebody else closes.

    Raises:
        InferenceError: There is none, or they are not of one model.
        ValueError: One is no session.
    """
    if not sessions:
        raise InferenceError("an empty list of sessions enlarges nothing; give at least one")
    for session in sessions:
        if not hasattr(session, "info"):
            raise ValueError(f"model is {session!r}; it is a path, an open session, several, or None")
    first = sessions[0].info
    for other in (session.info for session in sessions[1:]):
        if (other.form, other.scale, other.in_channels) != (first.form, first.scale, first.in_channels):
            raise InferenceError(
                f"{first.name} and {other.name} are not one model: x{float(first.scale):g} {first.form} of "
                f"{first.in_channels} channels, x{float(other.scale):g} {other.form} of {other.in_channels}"
            )
    return [Lane(session, slots=slots, owned=False) for session in sessions]
