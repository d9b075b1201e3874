"""One device of an Upscaler: its session, and the slots that are free."""

import contextlib

from esrgan_deploy.runtime._session import Session, SessionInfo, Slot

__all__ = ["Lane", "close_quietly"]


class Lane:
    """A session with up to a number of slots. Not locked: its crew holds its own lock around every call.

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
