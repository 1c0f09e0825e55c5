"""The jobs in a file, an SQLite database: acknowledged changes survive when the broker is killed, and are restored.

Each write stores the changes since the last one, in one transaction, before any reply is sent. As with beanstalkd's
binlog, the file survives any crash of the process; a power failure may lose the last moments.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import stat
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flask_backend.errors import BackendError
from flask_backend.visible import visible

from .rows import RowError, read_job, read_next_id, write_job
from .store import Store, StoredJob

_APPLICATION_ID = 0x666C6271  # identifies our databases
_VERSION = 1

# Times are wall-clock times, so that they stay valid after a restart.
_TABLES = {
    "job": """
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
)""",
    "counter": "CREATE TABLE counter (next_id INTEGER NOT NULL)",
}
_SELECT = """
SELECT id, tube, body, state, priority, delay_s, ttr_s, created_at, at, reserves, timeouts, releases, buries, kicks
FROM job ORDER BY at, id
"""
_SAVE = "INSERT OR REPLACE INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM job WHERE id = ?"

_MODE = stat.S_IRUSR | stat.S_IWUSR  # bodies may be confidential
_HEADER_BYTES = 100  # of any database
_NO_DATABASE = "is not an SQLite database: choose another file, or a new one"
_MAX_REASON = 200  # characters of an error of SQLite, which may show text of the file
# This much disk space stays free, so that jobs can still be deleted and buried when puts are refused.
_RESERVE_BYTES = 16 * 1024**2


class JournalError(BackendError):
    """The file cannot be used, or can no longer be written."""


class Journal:
    """The file, open only in this process.

    ``warnings`` are for the person who runs the broker; loading adds to them.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raise :exc:`JournalError` on failure."""
        self.warnings: list[str] = []
        self._path = path
        self._next_id = 1
        with self._explaining():
            _create(path)
            self._file = path.resolve()  # not a link: beside it are its log and its free space
            self._warn_of_mode()
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            with self._explaining():
                self._open()
        except JournalError:
            self._db.close()
            raise

    def _open(self) -> None:
        self._db.text_factory = _decode
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        application_id, version, tables = (
            self._db.execute(query).fetchone()[0]
            for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        is_new = not (application_id or tables)
        if not is_new and application_id != _APPLICATION_ID:
            raise JournalError(
                f"{self._path} is a database that this broker did not create: choose another file, or a new one"
            )
        if not is_new and version != _VERSION:
            raise JournalError(
                f"{self._path} has version {version} of the broker's tables, expected {_VERSION}: "
                "run the version of Flask-Backend that wrote it, or choose another file, or a new one"
            )
        if not is_new:
            self._check_tables()
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        if is_new:
            marks = (f"PRAGMA application_id = {_APPLICATION_ID}", f"PRAGMA user_version = {_VERSION}")
            for statement in ("BEGIN", *_TABLES.values(), "INSERT INTO counter VALUES (1)", *marks, "COMMIT"):
                self._db.execute(statement)
        self._db.execute("BEGIN EXCLUSIVE")  # this lock is kept: from here on, other processes cannot even read
        self._db.execute("COMMIT")

    def _check_tables(self) -> None:
        # With other columns, as without the primary key, a job could be there twice, or be lost when it is written.
        found = dict(self._db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        for name, expected in _TABLES.items():
            if (found.get(name) or "").split() != expected.split():
                raise JournalError(
                    f"{self._path} {_damaged(f'table {name} is missing, or not as the broker creates it')}"
                )

    def _warn_of_mode(self) -> None:
        # SQLite gives its log the mode of the database.
        files = [self._file, self._file.with_name(f"{self._file.name}-wal")]
        others = stat.S_IRWXG | stat.S_IRWXO
        open_ones = [str(file) for file in files if file.exists() and file.stat().st_mode & others]
        if open_ones:
            self.warnings.append(
                f"other users have access to the jobs in {self._path}; to end it: chmod 600 {shlex.join(open_ones)}"
            )

    def close(self) -> None:
        self._db.close()

    def load(self, store: Store) -> None:
        """Fill a new store from the file. Reserved jobs are ready again. Raise :exc:`JournalError` on failure."""
        with self._explaining():
            # This takes a fraction of the time that loading takes.
            [found] = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise JournalError(f"{self._path} {_damaged(found)}")
            self._next_id = read_next_id(self._db.execute("SELECT next_id FROM counter").fetchall())
            store.restore(self._jobs(), self._next_id)
        if store.next_id > self._next_id:
            self.warnings.append(
                f"{self._path} had {self._next_id} as the next id, below that of a job: ids go on at {store.next_id}"
            )

    def _jobs(self) -> Iterator[StoredJob]:
        shift_s = _wall_clock_shift_s()
        return (read_job(row, shift_s) for row in self._db.execute(_SELECT))

    def write(self, changed: Mapping[int, StoredJob | None], next_id: int) -> None:
        """Store the current state of jobs, and delete jobs that map to None. Raise :exc:`JournalError` on failure."""
        shift_s = _wall_clock_shift_s()
        with self._explaining():
            self._db.execute("BEGIN")
            self._db.executemany(_SAVE, [write_job(job, shift_s) for job in changed.values() if job])
            self._db.executemany(_DELETE, [(job_id,) for job_id, job in changed.items() if job is None])
            if next_id != self._next_id:
                self._db.execute("UPDATE counter SET next_id = ?", (next_id,))
            self._db.execute("COMMIT")
        self._next_id = next_id

    def has_room(self, size: int) -> bool:
        """Whether the disk has room for a body of ``size`` bytes."""
        try:
            disk = os.statvfs(self._file.parent)
        except OSError:  # the folder is gone, and the file with it: a job that is put now would be lost
            return False
        return disk.f_bavail * disk.f_frsize > _RESERVE_BYTES + 2 * size  # once in the log, once in the database

    @contextmanager
    def _explaining(self) -> Generator[None, None, None]:
        """Translate an error of the system, of SQLite or of a row into one line that says what mends it."""
        try:
            yield
        except RowError as error:
            raise JournalError(
                f"{self._path} is damaged: {error}; restore a copy, mend the value with the program sqlite3, "
                "or choose another file, or a new one"
            ) from error
        except OSError as error:
            raise JournalError(
                f"{self._path} cannot be opened: {error.strerror}: its folder must exist and be writable"
            ) from error
        except UnicodeDecodeError as error:  # of the text of SQLite's own error, which quotes the file
            raise JournalError(f"{self._path} {_damaged('a text is not UTF-8')}") from error
        except sqlite3.Error as error:
            raise JournalError(f"{self._path} {_reason(error)}") from error


def _create(path: Path) -> None:
    """Create the file for this user only, unless it exists. It is never created at the end of a dangling link."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    except FileExistsError:
        if not path.exists():
            raise JournalError(
                f"{path} is a link to a file that does not exist: remove the link, or create the file"
            ) from None
        if not path.is_file():
            raise JournalError(f"{path} is not a regular file: choose another file, or a new one") from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise JournalError(
                f"{path} cannot be opened: this user must be allowed to read and write it, and its disk writable"
            ) from None
        if 0 < path.stat().st_size < _HEADER_BYTES:  # SQLite overwrites a file of one byte
            raise JournalError(f"{path} {_NO_DATABASE}") from None
        return
    try:
        os.fchmod(file, _MODE)  # whatever the umask is
    finally:
        os.close(file)


def _decode(text: bytes) -> str:
    """Decode any text, so that the check of its row finds and names what is wrong."""
    return text.decode(errors="replace")


def _reason(error: sqlite3.Error) -> str:
    said = _cut(str(error))
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # without the details in the higher bits
        case sqlite3.SQLITE_BUSY:
            return "is open in another process: only one broker at a time may use a file"
        case sqlite3.SQLITE_NOTADB:
            return _NO_DATABASE
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY:
            return f"cannot be opened: {said}: this user must be allowed to write in its folder"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_ERROR:
            return _damaged(str(error))
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return f"cannot be used: {said}: its disk may be full or damaged"
        case _:
            return f"cannot be used: {said}"


def _damaged(reason: str) -> str:
    return f"is damaged: {_cut(reason)}; restore a copy, or choose another file, or a new one"


def _cut(reason: str) -> str:
    return visible(reason, _MAX_REASON)


def _wall_clock_shift_s() -> float:
    return time.time() - time.monotonic()
