"""The exponential average of the weights, which is what a training ships."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """Follows a module's weights: ``average += (1 - decay) · (weights - average)`` after each step.

    Early on the decay is smaller, ``(1 + n) / (10 + n)`` at update n, so that the random start is forgotten.

    Args:
        net: The module; its parameters and floating-point buffers are followed.
        decay: 0 copies the weights.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._weights = {name: value.detach().clone() for name, value in net.state_dict().items()}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averaged weights, by the module's names; they change with the next update."""
        return self._weights

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take one step towards the module's weights."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(list(self._weights.values()), list(net.state_dict().values()), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Return what a state keeps."""
        return {"updates": self._updates, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._updates = state["updates"]
        for name, value in state["weights"].items():
            self._weights[name].copy_(value)
