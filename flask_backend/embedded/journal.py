"""The jobs in a file, an SQLite database: acknowledged changes survive when the broker is killed, and are restored.

Each write stores the changes since the last one, in one transaction, before any reply is sent. As with beanstalkd's
binlog, the file survives any crash of the process; a power failure may lose the last moments.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flask_backend.errors import BackendError

from .store import State, Store, StoredJob, Tube

_APPLICATION_ID = 0x666C6271  # identifies our databases
_VERSION = 1

# Times are wall-clock times, so that they stay valid after a restart.
_SCHEMA = """
CREATE TABLE job (
    id INTEGER PRIMARY KEY,
    tube TEXT NOT NULL,
    body BLOB NOT NULL,
    state TEXT NOT NULL,
    priority INTEGER NOT NULL,
    delay_s INTEGER NOT NULL,
    ttr_s INTEGER NOT NULL,
    created_at REAL NOT NULL,
    at REAL NOT NULL,
    reserves INTEGER NOT NULL,
    timeouts INTEGER NOT NULL,
    releases INTEGER NOT NULL,
    buries INTEGER NOT NULL,
    kicks INTEGER NOT NULL
);
CREATE TABLE counter (next_id INTEGER NOT NULL);
INSERT INTO counter VALUES (1);
"""
_SELECT = """
SELECT id, tube, body, state, priority, delay_s, ttr_s, created_at, at, reserves, timeouts, releases, buries, kicks
FROM job ORDER BY at, id
"""
_SAVE = "INSERT OR REPLACE INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM job WHERE id = ?"

# This much disk space stays free, so that jobs can still be deleted and buried when puts are refused.
_RESERVE_BYTES = 16 * 1024**2


class JournalError(BackendError):
    """The file cannot be used, or can no longer be written."""


class Journal:
    """The file, open only in this process."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raise :exc:`JournalError` on failure."""
        self._path = path
        self._next_id = 1
        with self._explaining():
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            with self._explaining():
                self._open()
        except JournalError:
            self._db.close()
            raise

    def _open(self) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        application_id, version, tables = (
            self._db.execute(query).fetchone()[0]
            for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        is_new = not (application_id or tables)
        if not is_new and (application_id, version) != (_APPLICATION_ID, _VERSION):
            raise JournalError(
                f"{self._path} is a database that this broker did not create: choose another file, or a new one"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        if is_new:
            marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION};"
            self._db.executescript(f"BEGIN; {_SCHEMA} {marks} COMMIT;")
        self._db.execute("BEGIN EXCLUSIVE")  # this lock is kept: from here on, other processes cannot even read
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    def load(self, store: Store) -> None:
        """Fill a new store from the file. Reserved jobs are ready again."""
        with self._explaining():
            [self._next_id] = self._db.execute("SELECT next_id FROM counter").fetchone()
            store.restore(self._jobs(), self._next_id)

    def _jobs(self) -> Iterator[StoredJob]:
        shift_s = _wall_clock_shift_s()
        for row in self._db.execute(_SELECT):
            job_id, tube, body, state, priority, delay_s, ttr_s, created_at, at, *counters = row
            job = StoredJob(
                job_id, Tube(tube), body, priority, delay_s, ttr_s, created_at - shift_s, State(state), at - shift_s
            )
            job.reserves, job.timeouts, job.releases, job.buries, job.kicks = counters
            yield job

    def write(self, changed: Mapping[int, StoredJob | None], next_id: int) -> None:
        """Store the current state of jobs, and delete jobs that map to None. Raise :exc:`JournalError` on failure."""
        shift_s = _wall_clock_shift_s()
        with self._explaining():
            self._db.execute("BEGIN")
            self._db.executemany(_SAVE, [_row(job, shift_s) for job in changed.values() if job])
            self._db.executemany(_DELETE, [(job_id,) for job_id, job in changed.items() if job is None])
            if next_id != self._next_id:
                self._db.execute("UPDATE counter SET next_id = ?", (next_id,))
            self._db.execute("COMMIT")
        self._next_id = next_id

    def has_room(self, size: int) -> bool:
        """Whether the disk has room for a body of ``size`` bytes."""
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize > _RESERVE_BYTES + 2 * size  # once in the log, once in the database

    @contextmanager
    def _explaining(self) -> Generator[None, None, None]:
        """Translate an error of SQLite into plain words."""
        try:
            yield
        except sqlite3.Error as error:
            match getattr(error, "sqlite_errorcode", None):
                case sqlite3.SQLITE_BUSY:
                    reason = "is open in another process: only one broker at a time may use a file"
                case sqlite3.SQLITE_NOTADB:
                    reason = "is not an SQLite database: choose another file, or a new one"
                case sqlite3.SQLITE_CANTOPEN:
                    reason = "cannot be opened: its folder must exist and be writable"
                case _:
                    reason = f"cannot be used: {error}"
            raise JournalError(f"{self._path} {reason}") from error


def _row(job: StoredJob, shift_s: float) -> tuple[object, ...]:
    state = State.READY if job.state is State.RESERVED else job.state
    counters = (job.reserves, job.timeouts, job.releases, job.buries, job.kicks)
    times = (job.created_at + shift_s, job.at + shift_s)
    return job.id, job.tube.name, job.body, state.value, job.priority, job.delay_s, job.ttr_s, *times, *counters


def _wall_clock_shift_s() -> float:
    return time.time() - time.monotonic()
