"""The journal of a job: one row an item in SQLite, claimed by one process at a time."""

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from esrgan_deploy._errors import MediaError
from esrgan_deploy._files import is_owned, sha256_of, sweep
from esrgan_deploy.runtime.jobs._inputs import JobItem
from esrgan_deploy.runtime.jobs._rows import SCHEMA, VERSION, Made, Stamp

__all__ = ["JOURNAL", "Journal"]

JOURNAL = ".esrgan-job.sqlite"

# Another process holds the journal for as long as a row is written.
PATIENCE = 60.0


class Journal:
    """The rows of a folder of outputs; every method is one transaction, from any thread.

    Args:
        folder: Where the outputs go. It must exist.
        write: Whether it is made where it is not there, and written; else a copy in memory stands for it.

    Raises:
        MediaError: It cannot be opened, or is none of this version's.
    """

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        self.path = folder / JOURNAL
        self._folder = folder
        self._lock = threading.Lock()
        self._place = 0
        with self._told():
            self._database = sqlite3.connect(
                self.path if write else ":memory:",
                timeout=PATIENCE,
                isolation_level=None,
                check_same_thread=False,
            )
            if not write and self.path.exists():
                self._copy()
            self._database.row_factory = sqlite3.Row
            # What a run has of its own: other runs on the folder may be given other inputs.
            self._database.execute("PRAGMA temp_store = MEMORY")
            self._database.execute("CREATE TEMP TABLE mine (place INTEGER PRIMARY KEY, output BLOB UNIQUE)")
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def settings(self) -> dict[str, Any] | None:
        """Return the settings that the rows were made with; None of a new journal."""
        with self._reading() as database:
            (text,) = database.execute("SELECT settings FROM job").fetchone()
        return None if text is None else json.loads(text)

    def adopt(self, settings: dict[str, Any]) -> None:
        """Have the rows made with these settings from now on; what was made with others is to be made again.

        Raises:
            MediaError: Another run is at it with others.
        """
        text = json.dumps(settings, sort_keys=True)
        self.take_back()
        with self._transaction() as database:
            (before,) = database.execute("SELECT settings FROM job").fetchone()
            if before is not None and before != text:
                if database.execute("SELECT 1 FROM items WHERE state = 'running'").fetchone():
                    raise MediaError(
                        f"another run is making {self._folder} with another model or options; wait for it, or give "
                        "another folder with -o"
                    )
                database.execute(
                    "UPDATE items SET state = 'pending', owner = NULL, attempts = 0, reason = NULL"
                )
            database.execute("UPDATE job SET settings = ?", (text,))

    def enter(
        self, items: Iterable[JobItem], *, force: bool, skip_existing: bool, retry_failed: bool
    ) -> Iterator[tuple[JobItem, str, str]]:
        """Write down the items of a run, and take them for it.

        Args:
            items: Those that were not refused.
            force: Whether outputs that are there, and are not the job's, are replaced.
            skip_existing: Whether they are passed over.
            retry_failed: Whether those that failed are tried again, and nothing else is done.

        Returns:
            Of each ``(item, state, reason)``; a state may be ``"skipped"`` or ``"refused"`` as well, which is not
            written down, or empty for what does not concern this run.
        """
        found = []
        with self._transaction() as database:
            for place, item in enumerate(items):
                key = self.key(item)
                row = database.execute("SELECT * FROM items WHERE output = ?", (key,)).fetchone()
                state, reason = self._standing(row, item, force=force, skip_existing=skip_existing)
                if retry_failed:
                    state = "pending" if row is not None and state == "failed" else ""
                    reason = ""
                if state == "pending" and (row is None or row["state"] != "pending"):
                    database.execute(
                        "INSERT INTO items (output, source, kind, state) VALUES (?, ?, ?, 'pending') ON CONFLICT "
                        "(output) DO UPDATE SET state = 'pending', source = excluded.source, reason = NULL, "
                        "attempts = 0, owner = NULL",
                        (key, os.fsencode(item.source.absolute()), item.kind),
                    )
                if force and state == "pending":
                    database.execute("UPDATE items SET ours = 1 WHERE output = ?", (key,))
                if state in ("pending", "running", "done", "failed"):
                    database.execute("INSERT OR IGNORE INTO mine VALUES (?, ?)", (place, key))
                found.append((item, state, reason))
        return iter(found)

    def claim(self, owner: str) -> tuple[bytes, int] | None:
        """Take the next item of this run that nobody has, or None.

        Those that were in the hand of a process that died come last, so that one on which it dies always stops no
        other.

        Args:
            owner: Name of the file that this process holds.

        Returns:
            Its key, and how often it was in hand before.
        """
        with self._transaction() as database:
            while True:
                # From where the last one was found: of tens of thousands not all are looked at each time.
                row = database.execute(
                    "SELECT place, items.* FROM mine CROSS JOIN items USING (output) "
                    "WHERE place >= ? AND state = 'pending' AND attempts = 0 ORDER BY place LIMIT 1",
                    (self._place,),
                ).fetchone()
                row = (
                    row
                    or database.execute(
                        "SELECT place, items.* FROM mine JOIN items USING (output) WHERE state = 'pending' "
                        "ORDER BY attempts, place LIMIT 1"
                    ).fetchone()
                )
                if row is None:
                    return None
                self._place = row["place"]
                key = row["output"]
                if not row["ours"] and os.path.lexists(self._folder / os.fsdecode(key)):
                    reason = "its output exists already; --skip-existing passes over it, --force replaces it"
                    self._settle(database, key, "failed", reason)
                    continue
                database.execute(
                    "UPDATE items SET state = 'running', owner = ?, attempts = attempts + 1, ours = 1 "
                    "WHERE output = ?",
                    (owner, key),
                )
                return key, row["attempts"]

    def finish(self, key: bytes, made: Made, settings_sha256: str) -> None:
        """Write down that an item is done."""
        with self._transaction() as database:
            database.execute(
                "UPDATE items SET state = 'done', owner = NULL, reason = NULL, source_size = ?, source_mtime_ns = ?, "
                "source_sha256 = ?, output_size = ?, output_sha256 = ?, settings_sha256 = ? WHERE output = ?",
                (
                    made.stamp.size, made.stamp.mtime_ns, made.source_sha256, made.output_size, made.output_sha256,
                    settings_sha256, key,
                ),
            )  # fmt: skip

    def fail(self, key: bytes, reason: str, stamp: Stamp | None) -> None:
        """Write down that an item failed, of a source in that state."""
        with self._transaction() as database:
            self._settle(database, key, "failed", reason, stamp)

    def give_back(self, key: bytes) -> None:
        """Leave an item to whoever comes next."""
        with self._transaction() as database:
            self._settle(database, key, "pending", None)
            # That is for those on which a process died.
            database.execute("UPDATE items SET attempts = attempts - 1 WHERE output = ?", (key,))

    def take_back(self) -> list[bytes]:
        """Make what dead processes had in hand pending again, remove what they left, and return the keys."""
        with self._reading() as database:
            owners = database.execute("SELECT DISTINCT owner FROM items WHERE state = 'running'").fetchall()
        dead = [owner for (owner,) in owners if not is_owned(self._folder / owner)]
        taken: list[bytes] = []
        with self._transaction() as database:
            for owner in dead:
                rows = database.execute(
                    "UPDATE items SET state = 'pending', owner = NULL WHERE state = 'running' AND owner = ? "
                    "RETURNING output",
                    (owner,),
                ).fetchall()
                taken += [row["output"] for row in rows]
        # And, in the folder itself, the files that dead owners held.
        for folder in {self._folder, *((self._folder / os.fsdecode(key)).parent for key in taken)}:
            sweep(folder)
        return taken

    def standing(self) -> dict[str, int]:
        """Return how many items of this run are in each state."""
        with self._reading() as database:
            rows = database.execute(
                "SELECT state, count(*) FROM mine JOIN items USING (output) GROUP BY state"
            ).fetchall()
        return {"pending": 0, "running": 0, "done": 0, "failed": 0} | dict(rows)

    def failures(self) -> dict[bytes, str]:
        """Return why the items of this run failed that did, in their order."""
        with self._reading() as database:
            rows = database.execute(
                "SELECT output, reason FROM mine JOIN items USING (output) WHERE state = 'failed' ORDER BY place"
            ).fetchall()
        return {row["output"]: row["reason"] for row in rows}

    def close(self) -> None:
        """Close it; a thread that still uses it gets an error."""
        # SQLite crashes where it is closed under a statement.
        with self._lock:
            self._database.close()

    def key(self, item: JobItem) -> bytes:
        """Return by what an item is known: the path of its output below the folder."""
        return os.fsencode(item.output.relative_to(self._folder).as_posix())

    def _standing(
        self, row: sqlite3.Row | None, item: JobItem, *, force: bool, skip_existing: bool
    ) -> tuple[str, str]:
        """Return what an item is now, before anything is done: its state and why."""
        there = os.path.lexists(item.output)
        if row is None:
            if there and skip_existing:
                return "skipped", "its output is there"
            if there and not force:
                return (
                    "refused",
                    "its output exists already; --skip-existing passes over it, --force replaces it",
                )
            return "pending", ""
        if row["source"] != os.fsencode(item.source.absolute()):
            if row["state"] == "running":
                return "refused", f"its output {item.output} is being made of {os.fsdecode(row['source'])}"
            if row["ours"] and there and not force:
                return (
                    "refused",
                    f"its output {item.output} was made of {os.fsdecode(row['source'])}; --force replaces it",
                )
            return "pending", ""
        state = row["state"]
        if state == "done":
            if not there:
                return "pending", ""
            if self._changed(row, item.source):
                own = item.output.is_file() and sha256_of(item.output) == row["output_sha256"]
                if own or force:
                    return "pending", ""
                return (
                    "refused",
                    f"it changed since it was done, and so did {item.output}; --force replaces that",
                )
        elif state == "failed" and self._changed(row, item.source):
            return "pending", ""
        return state, row["reason"] or ""

    def _changed(self, row: sqlite3.Row, source: Path) -> bool:
        try:
            now = Stamp.of(source)
        except OSError:
            # What is done stays done.
            return False
        if (now.size, now.mtime_ns) == (row["source_size"], row["source_mtime_ns"]):
            return False
        return row["source_sha256"] is None or sha256_of(source) != row["source_sha256"]

    @staticmethod
    def _settle(
        database: sqlite3.Connection, key: bytes, state: str, reason: str | None, stamp: Stamp | None = None
    ) -> None:
        size, mtime = (None, None) if stamp is None else (stamp.size, stamp.mtime_ns)
        database.execute(
            "UPDATE items SET state = ?, owner = NULL, reason = ?, source_size = ?, source_mtime_ns = ?, "
            "source_sha256 = NULL WHERE output = ?",
            (state, reason, size, mtime, key),
        )

    def _copy(self) -> None:
        # Nothing is written but what a run left that was killed while it wrote, which has to be undone to be read.
        source = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", timeout=PATIENCE, uri=True)
        try:
            source.backup(self._database)
        finally:
            source.close()

    def _prepare(self) -> None:
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                # Not executescript, which ends the transaction.
                for statement in SCHEMA.split(";\n"):
                    if statement.strip():
                        database.execute(statement)
                database.execute("INSERT INTO job VALUES (?, NULL)", (VERSION,))
                database.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise MediaError(
                    f"{self.path} is a journal of version {version} and this program knows {VERSION}; "
                    "give another folder with -o, or remove that file"
                )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.commit()
            except BaseException:
                self._database.rollback()
                raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            yield self._database

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise MediaError(
                f"the journal {self.path} cannot be used ({error}); free some space, or give another folder "
                "with -o. The same command goes on where it ended"
            ) from error
