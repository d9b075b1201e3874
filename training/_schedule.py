"""The learning rate as a function of the step."""

import math
from collections.abc import Sequence

__all__ = ["learning_rate"]


def learning_rate(
    step: int,
    *,
    peak: float,
    schedule: str,
    steps: int,
    warmup: int = 0,
    milestones: Sequence[int] = (),
    gamma: float = 0.5,
) -> float:
    """Return the rate that a step is taken with.

    Args:
        step: From 0.
        peak: The rate after the warm-up.
        schedule: ``"cosine"``, to zero at ``steps``, or ``"multistep"``.
        steps: Steps of the whole training.
        warmup: Steps over which the rate rises linearly.
        milestones: Of multistep: from each of these steps on the rate is multiplied by gamma once more.
        gamma: Of multistep.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "cosine":
        return peak * rise * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    return peak * rise * gamma ** sum(step >= milestone for milestone in milestones)
