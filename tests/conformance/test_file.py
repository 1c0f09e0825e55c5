"""The file of the embedded broker: only its owner reads it, and a file that is not sound ends in one line."""

# ruff: noqa: S608  # the statements are those of the test

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from servers import Embedded, run
from wire import Wire

from flask_backend.embedded import Journal, JournalError
from flask_backend.embedded.commands import Dispatcher
from flask_backend.embedded.protocol import Command
from flask_backend.embedded.store import Store

COUNTERS = ("reserves", "timeouts", "releases", "buries", "kicks")
COLUMNS = ("id", "tube", "body", "state", "priority", "delay_s", "ttr_s", "created_at", "at", *COUNTERS)


@pytest.fixture
def file(tmp_path) -> Path:
    """Return a file with the jobs 1 to 3, ready, delayed and buried."""
    path = tmp_path / "jobs"
    store = Store()
    with closing(Journal(path)) as journal:
        client = store.connect()
        store.put(client, 0, 0, 60, b"ready", 0.0)
        store.put(client, 0, 1000, 60, b"delayed", 0.0)
        buried = store.put(client, 0, 0, 60, b"buried", 0.0)
        store.reserve_job(client, buried.id, 0.0)
        store.bury(client, buried.id, 0, 0.0)
        journal.write(store.changed, store.next_id)
    return path


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def load(path: Path) -> tuple[Store, list[str]]:
    """Return the store that a broker fills from the file, and the warnings."""
    store = Store()
    with closing(Journal(path)) as journal:
        journal.load(store)
    return store, journal.warnings


def refusal_of(path: Path) -> str:
    with pytest.raises(JournalError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 400
    return message


def end_of(server: Embedded) -> str:
    """Stop a broker, and return what it printed after its announcement."""
    server.process.terminate()
    return server.wait()[1]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# -- who may read it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0, 0o022, 0o777], ids=oct)
def test_only_the_owner_reads_the_file_and_its_log(tmp_path, mask):
    with umask(mask):
        server = Embedded(tmp_path / "jobs")
    try:
        with Wire(server.port) as wire:
            wire.put(b"secret")
        modes = {path.name: mode_of(path) for path in tmp_path.iterdir()}
    finally:
        server.stop()
    assert modes == {"jobs": 0o600, "jobs-wal": 0o600}


def test_a_file_that_others_can_read_keeps_its_mode_and_causes_a_warning(file):
    file.chmod(0o640)
    server = Embedded(file)
    server.kill()
    assert mode_of(file) == 0o640
    wal = file.with_name("jobs-wal")
    assert mode_of(wal) == 0o640
    server.start()
    mends = f"chmod 600 {file} {wal}"
    assert end_of(server) == f"warning: other users have access to the jobs in {file}; to end it: {mends}\n"
    file.chmod(0o600)
    assert load(file)[1] == []


def test_a_file_for_the_owner_only_causes_no_warning(file):
    assert load(file)[1] == []


def test_a_dangling_link_is_not_followed(tmp_path):
    target = tmp_path / "elsewhere"
    (tmp_path / "jobs").symlink_to(target)
    assert "is a link to a file that does not exist: remove the link, or create the file" in refusal_of(
        tmp_path / "jobs"
    )
    assert not target.exists()


def test_a_link_to_a_file_is_followed(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    assert load(link)[1] == []
    file.chmod(0o644)
    store, [warning] = load(link)
    assert len(store.jobs) == 3
    assert warning.endswith(f"chmod 600 {file}")


def test_a_dangling_link_in_place_of_the_log_is_not_followed(file, tmp_path):
    target = tmp_path / "elsewhere"
    (tmp_path / "jobs-wal").symlink_to(target)
    refusal_of(file)
    assert not target.exists()


# -- what cannot be opened ---------------------------------------------------------------------------------------------


def test_a_directory_is_refused(tmp_path):
    code, said = run("--file", str(tmp_path))
    assert (code, f"File '{tmp_path}' is a directory." in said) == (2, True)
    assert "is not a regular file" in refusal_of(tmp_path)


def test_a_pipe_and_a_device_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal_of(tmp_path / "pipe")
    assert "is not a regular file" in refusal_of(Path("/dev/full"))


@pytest.mark.parametrize("name", ["no/jobs", "text/jobs", "x" * 300, "loop"])
def test_a_path_that_leads_nowhere_is_refused(tmp_path, name):
    (tmp_path / "text").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refusal_of(tmp_path / name)


AS_A_STRANGER = """
import os, sys
from pathlib import Path
from flask_backend.embedded import Journal, JournalError
os.setgid(65534)
os.setuid(65534)
try:
    Journal(Path(sys.argv[1]))
except JournalError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o600, 0o755), (0o644, 0o755), (0o666, 0o555)])
def test_without_permission_it_says_what_is_missing(file, tmp_path, file_mode, folder_mode):
    folder = Path(tempfile.gettempdir()) / f"stranger-{os.getpid()}"
    folder.mkdir()
    try:
        for name in ("jobs", "new"):
            shutil.copy(file, folder / "jobs")
            (folder / "jobs").chmod(file_mode)
            folder.chmod(folder_mode)
            done = subprocess.run(
                [sys.executable, "-c", AS_A_STRANGER, folder / name], capture_output=True, text=True, check=True
            )
            assert done.stderr == ""
            assert done.stdout.startswith(f"{folder / name} cannot be opened: ")
            assert "must" in done.stdout
            assert done.stdout.count("\n") == 1
    finally:
        shutil.rmtree(folder)


@contextmanager
def small_disk(at: Path, size: str, options: str = "") -> Iterator[Path]:
    if (
        os.getuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", at], check=False).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=True)


@pytest.mark.parametrize("size", ["4k", "12k"])
def test_a_disk_without_room_is_one_line(tmp_path, size):
    with small_disk(tmp_path, size) as disk:
        code, said = run("--file", str(disk / "jobs"))
    assert code == 1
    assert said.startswith(f"Error: {tmp_path / 'jobs'} cannot be ")
    assert said.count("\n") == 1


def test_a_disk_that_is_nearly_full_refuses_puts(tmp_path):
    with small_disk(tmp_path, "1m") as disk:
        server = Embedded(disk / "jobs")
        with Wire(server.port) as wire:
            assert wire.ask("put 0 0 1 1", "x") == b"OUT_OF_MEMORY"
        server.stop()


def test_a_read_only_disk_is_one_line(file, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder, "1m") as disk:
        shutil.copy(file, disk / "jobs")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert "cannot be opened: this user must be allowed to read and write it, and its disk writable" in refusal_of(
            disk / "jobs"
        )
        assert "cannot be opened: Read-only file system" in refusal_of(disk / "new")


def test_puts_are_refused_once_the_folder_is_gone(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with closing(Journal(folder / "jobs")) as journal:
        commands = Dispatcher(Store(), 1000, 0.0, journal.has_room)
        put = Command("put", numbers=(0, 0, 1, 1), body=b"x")
        assert commands.run(commands.connect(), put, 0.0) == b"INSERTED 1\r\n"
        shutil.rmtree(folder)
        assert commands.run(commands.connect(), put, 0.0) == b"OUT_OF_MEMORY\r\n"


# -- what is not sound -------------------------------------------------------------------------------------------------


def test_a_broker_that_ends_at_a_damaged_file_prints_one_line(file):
    change(file, "UPDATE job SET priority = -5 WHERE id = 2")
    code, said = run("--file", str(file))
    assert code == 1
    assert said == (
        f"Error: {file} is damaged: job 2 has priority -5, expected a number below 2**32; restore a copy, "
        "mend the value with the program sqlite3, or choose another file, or a new one\n"
    )


WRONG = {
    "tube": [
        "''",
        "'a b'",
        "'-a'",
        f"'{'a' * 201}'",
        "'a' || char(10)",
        "'\u00e4'",
        "x'61'",
        "cast(x'ff' as text)",
    ],
    "body": ["'text'", "5", "2.5"],
    "state": ["''", "'reserved'", "'lost'", "1", "'READY'"],
    "created_at": ["9e999", "-9e999", "1e300", "'soon'", "x'00'"],
    "at": ["9e999", "1e300", "'soon'"],
    **{name: ["-1", "4294967296", "1.5", "'x'", "x'00'"] for name in ("priority", "delay_s")},
    "ttr_s": ["0", "-1", "4294967296", "'x'"],
    **{name: ["-1", "9223372036854775807", "1.5", "'x'"] for name in COUNTERS},
    "id": ["0", "-1", "-9223372036854775808", "9223372036854775807", "4611686018427387904"],
}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_wrong_value_of_a_job_is_named(file, column):
    for value in WRONG[column]:
        copy = file.with_name("copy")
        shutil.copy(file, copy)
        change(copy, f"UPDATE job SET {column} = {value} WHERE id = 2")
        assert f" has {column} " in refusal_of(copy)


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TABLE job"],
        ["DROP TABLE counter"],
        ["ALTER TABLE job DROP COLUMN kicks"],
        ["ALTER TABLE job ADD COLUMN more"],
        ["ALTER TABLE job RENAME TO old", f"CREATE TABLE job ({', '.join(COLUMNS)})"],
        ["DROP TABLE job", "CREATE VIEW job AS SELECT 1 AS id"],
    ],
)
def test_missing_and_changed_tables_are_named(file, statements):
    change(file, *statements)
    message = refusal_of(file)
    assert "is damaged: table " in message
    assert "is missing, or not as the broker creates it" in message


def test_a_version_that_is_not_ours_is_named(file):
    change(file, "PRAGMA user_version = 2")
    assert "has version 2 of the broker's tables, expected 1" in refusal_of(file)


@pytest.mark.parametrize("size", [1, 50, 100, 512, 4096, 4097, 6000, 8192, 10_000])
def test_a_truncated_file_is_refused(file, size):
    assert file.stat().st_size > size
    os.truncate(file, size)
    message = refusal_of(file)
    assert "is damaged" in message or "is not an SQLite database" in message or "did not create" in message


@pytest.mark.parametrize("at", range(0, 12_288, 331))
def test_a_damaged_byte_is_refused_or_harmless(file, at):
    data = bytearray(file.read_bytes())
    data[at : at + 16] = b"\xff" * 16
    file.write_bytes(data)
    with suppress(JournalError):
        load(file)


# -- the ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("next_id", [-7, 0, 1, 3])
def test_a_next_id_below_that_of_a_job_never_overwrites_one(file, next_id):
    change(file, f"UPDATE counter SET next_id = {next_id}")
    server = Embedded(file)
    try:
        with Wire(server.port) as wire:
            assert wire.put(b"new") == 4
            assert wire.ask("peek 1") == b"FOUND 1 5\r\nready"
    finally:
        said = end_of(server)
    assert said == f"warning: {file} had {next_id} as the next id, below that of a job: ids go on at 4\n"
    store, warnings = load(file)
    assert warnings == []
    assert (sorted(store.jobs), store.next_id) == ([1, 2, 3, 4], 5)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM counter",
        "INSERT INTO counter VALUES (9)",
        "UPDATE counter SET next_id = 'x'",
        "UPDATE counter SET next_id = 1.5",
        "UPDATE counter SET next_id = 9223372036854775807",
    ],
)
def test_a_counter_that_is_not_one_number_is_named(file, statement):
    change(file, statement)
    assert "the counter of ids has " in refusal_of(file)


def test_very_large_ids_are_kept_and_go_on(file):
    largest = 2**62 - 1
    change(file, f"UPDATE job SET id = {largest} WHERE id = 2")
    store, _ = load(file)
    assert store.jobs[largest].body == b"delayed"
    assert store.next_id == largest + 1
