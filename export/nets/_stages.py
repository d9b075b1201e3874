"""A generator cut between its units, so that what one of them does to the picture costs only what comes behind it."""

import abc
import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["Generator", "Stage", "State", "output_of"]

State = tuple[Tensor, ...]
"""What flows from one stage to the next: the features first, then every residual that is still open."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of the net that holds one unit, or none where it only closes a residual.

    Attributes:
        unit: `Layer.unit` of the convolutions in it; empty where there is none.
        run: From the state in front of it to the one behind it, whose features are what the unit makes. It calls the
            module's own submodules, so that a `Simulation` has its effect.
    """

    unit: str = ""
    run: Callable[[State], State]


class Generator(nn.Module, abc.ABC):
    """A net that can be run stage by stage."""

    @abc.abstractmethod
    def start(self, picture: Tensor) -> State:
        """Return the state in front of the first stage.

        Args:
            picture: ``(N, C, H, W)`` float32 0..1.
        """

    @abc.abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Cut the net into its units, in the order in which they run.

        All of them one after the other, between `start` and `output_of`, compute exactly what the module does.
        """


def output_of(pieces: tuple[Stage, ...], state: State) -> Tensor:
    """Run the stages that are left and return the net's output ``(N, C, H·s, W·s)``."""
    for piece in pieces:
        state = piece.run(state)
    return state[0]
