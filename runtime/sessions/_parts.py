"""What is known of a graph in two parts, trunk and tail, which take pictures of any size."""

import dataclasses
import json
from typing import Any, Self

__all__ = ["PICTURE", "Block", "PartsInfo"]

PICTURE = -1
"""Who makes the rows that a block reads, where no other block does."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A piece of the trunk.

    Attributes:
        reach: Rows above and below that a row of it is made of.
        inputs: Of each thing that it reads, who makes it (`PICTURE`, or the number of a block before) and how many
            rows of it there are for each row of the block.
    """

    reach: int
    inputs: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartsInfo:
    """What ``esrgan-export`` wrote of the parts, in the metadata of the trunk.

    Attributes:
        whole: sha256 of the graph that they are parts of.
        blocks: Of the trunk, in order.
        features: Channels of the map between trunk and tail.
        step: Rows of the picture for each row of the map.
        reach: Of the tail, in rows and columns of the map.
        scale: Rows that the tail makes of each row of the map.
        picture: Whether the tail reads the picture as well.
    """

    whole: str
    blocks: tuple[Block, ...]
    features: int
    step: int
    reach: int
    scale: int
    picture: bool

    def of(self, whole: str) -> Self:
        """Return the same of another file, of which this is the digest."""
        return dataclasses.replace(self, whole=whole)

    def to_json(self) -> str:
        """Return it as `from_json` reads it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is nothing of the kind.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            blocks = tuple(
                Block(int(block["reach"]), tuple((int(maker), int(step)) for maker, step in block["inputs"]))
                for block in data.pop("blocks")
            )
            return cls(blocks=blocks, **data)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{text[:80]} does not describe the parts of a graph") from error
