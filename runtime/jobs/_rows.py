"""What a journal holds: its tables, and what is written down of a file and of an item that is done."""

import dataclasses
from pathlib import Path

__all__ = ["SCHEMA", "VERSION", "Made", "Stamp"]

VERSION = 1
SCHEMA = """
CREATE TABLE job (version INTEGER NOT NULL, settings TEXT);
CREATE TABLE items (
    output BLOB PRIMARY KEY,           -- path below the folder, as the file system has it
    source BLOB NOT NULL,              -- absolute path
    kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed')),
    owner TEXT,                        -- of a running one: the file that its process holds locked
    attempts INTEGER NOT NULL DEFAULT 0,
    ours INTEGER NOT NULL DEFAULT 0,   -- whether an output that is there may be replaced
    source_size INTEGER, source_mtime_ns INTEGER, source_sha256 TEXT,
    output_size INTEGER, output_sha256 TEXT,
    settings_sha256 TEXT,
    reason TEXT
);
CREATE INDEX items_by_state ON items (state);
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stamp:
    """By what a file is known to be unchanged.

    Attributes:
        size: Bytes.
        mtime_ns: When it was written.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Return that of a file.

        Raises:
            OSError: It is not there.
        """
        found = path.stat()
        return cls(size=found.st_size, mtime_ns=found.st_mtime_ns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What is written down of an item that is done.

    Attributes:
        stamp: Of the source.
        source_sha256: Its digest.
        output_size: Bytes.
        output_sha256: Digest of the output.
        size: ``(height, width)`` of the source.
        made_size: ``(height, width)`` of the output.
        notes: What was left out.
    """

    stamp: Stamp
    source_sha256: str
    output_size: int
    output_sha256: str
    size: tuple[int, int]
    made_size: tuple[int, int]
    notes: tuple[str, ...]
