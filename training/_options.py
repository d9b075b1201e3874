"""A field of a configuration that carries its own help and limits."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

__all__ = ["key", "problems"]


def key(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002 - argparse's name for it
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Return a dataclass field with its documentation and its limits in the metadata."""
    limits = {"least": least, "most": most, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, **limits})


def problems(field: "dataclasses.Field[Any]", value: Any) -> Iterator[str]:
    """Say what is allowed, once for each limit that the value breaks."""
    choices = field.metadata["choices"]
    if choices and value not in choices:
        yield f"allowed are {', '.join(choices)}"
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            yield from _out_of_limits(field, number)


def _out_of_limits(field: "dataclasses.Field[Any]", number: float) -> Iterator[str]:
    least, most, above, below = (field.metadata[name] for name in ("least", "most", "above", "below"))
    if isinstance(number, int) and abs(number) >= 2**63:
        # Larger ones fit no float and no tensor.
        yield "it is a number of at most 63 bits"
        return
    if not math.isfinite(number):
        yield "it is a finite number"
    if least is not None and number < least:
        yield f"it is at least {least}"
    if most is not None and number > most:
        yield f"it is at most {most}"
    if above is not None and number <= above:
        yield f"it is above {above}"
    if below is not None and number >= below:
        yield f"it is below {below}"
