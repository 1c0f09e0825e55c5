"""The embedded broker with a file: acknowledged jobs survive its death, and deleted jobs stay deleted."""

from __future__ import annotations

import random
import re
import resource
import sqlite3
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field

import pytest
from servers import Embedded, run
from wire import Wire

from flask_backend.embedded import Journal
from flask_backend.embedded.commands import Dispatcher
from flask_backend.embedded.protocol import Command
from flask_backend.embedded.store import Store

LOAD_S = 0.6  # at most, until the kill
CLIENTS = 4


@pytest.fixture
def start(tmp_path):
    """Start brokers that use this test's file."""
    started: list[Embedded] = []

    def start(file=tmp_path / "jobs") -> Embedded:
        started.append(Embedded(file))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def dial():
    """Connect to a broker for the duration of the test."""
    made: list[Wire] = []

    def dial(server: Embedded) -> Wire:
        made.append(Wire(server.port, "t"))
        return made[-1]

    yield dial
    for wire in made:
        wire.close()


@dataclass
class Load:
    """One client that puts jobs into its own tube and works on them until the server dies."""

    tube: str
    states: dict[int, str | None] = field(default_factory=dict)  # acknowledged jobs by id; None: deleted
    open: int | None = None  # the job whose last command had no reply
    random: random.Random = field(default_factory=random.Random)

    def run(self, port: int) -> None:
        with Wire(port, self.tube) as wire, suppress(OSError, AssertionError):  # until the server is dead
            while True:
                self.step(wire)

    def step(self, wire: Wire) -> None:
        self.open = None
        held = [job_id for job_id, state in self.states.items() if state == "ready"]
        if len(held) < 5 or self.random.random() < 0.3:
            delay = self.random.choice([0, 0, 1000])
            job_id = wire.put(self.tube.encode() * self.random.randrange(50), delay=delay)
            self.states[job_id] = "delayed" if delay else "ready"
            return
        job_id = self.random.choice(held)
        self.open = job_id
        assert wire.ask(f"reserve-job {job_id}").startswith(b"RESERVED")
        commands = {
            f"delete {job_id}": None,
            f"bury {job_id} 3": "buried",
            f"release {job_id} 4 0": "ready",
            f"release {job_id} 5 1000": "delayed",
        }
        command = self.random.choice(list(commands))
        assert wire.ask(command)  # any error: the server may be dead
        self.states[job_id] = commands[command]

    def check(self, wire: Wire) -> None:
        for job_id, state in self.states.items():
            if job_id == self.open:
                self.states[job_id] = wire.state(job_id)
                continue
            assert wire.state(job_id) == state, job_id
            if state:
                body = wire.ask(f"peek {job_id}").split(b"\r\n")[1]
                assert body.replace(self.tube.encode(), b"") == b""


def test_a_kill_at_any_moment_loses_no_acknowledged_job(start):
    loads = [Load(f"tube-{n}", random=random.Random(n)) for n in range(CLIENTS)]
    server = start()
    for _ in range(3):
        threads = [threading.Thread(target=load.run, args=(server.port,)) for load in loads]
        for thread in threads:
            thread.start()
        time.sleep(random.uniform(0.05, LOAD_S))
        server.kill()
        for thread in threads:
            thread.join()
        server.start()
        with Wire(server.port, "t") as wire:
            for load in loads:
                load.check(wire)
            known = [job_id for load in loads for job_id in load.states]
            assert wire.put() > max(known)
    assert len(known) > 100


def test_jobs_come_back_unchanged(start, dial):
    server = start()
    wire = dial(server)
    ready, delayed = wire.put(b"ready", priority=7, ttr=9), wire.put(b"", delay=1000)
    buried = [wire.reserved(body=bytes(range(256))) for _ in range(3)]
    for job_id in (buried[2], buried[0], buried[1]):
        wire.ask(f"bury {job_id} 0")
    held, dug_up = wire.reserved(delay=500), wire.reserved()
    wire.ask(f"bury {dug_up} 0")
    wire.ask(f"reserve-job {dug_up}")
    kinds = [(ready, "ready"), (delayed, "delayed"), (buried[0], "buried"), (held, "reserved"), (dug_up, "reserved")]
    before = [wire.stats(f"-job {job_id}") for job_id, _ in kinds]
    assert [stats["state"] for stats in before] == [state for _, state in kinds]
    server.kill()
    server.start()
    wire = dial(server)
    after = [wire.stats(f"-job {job_id}") for job_id, _ in kinds]
    assert [stats["state"] for stats in after] == ["ready", "delayed", "buried", "ready", "ready"]
    assert int(after[1]["time-left"]) in range(980, 1000)
    for now, then in zip(after, before, strict=True):
        assert [now[key] for key in ("pri", "ttr", "delay", "buries")] == [
            then[key] for key in ("pri", "ttr", "delay", "buries")
        ]
    assert wire.ask(f"peek {buried[0]}") == b"FOUND %d 256\r\n%b" % (buried[0], bytes(range(256)))
    assert wire.ask("peek-buried").split()[1] == b"%d" % buried[2]


def test_a_delay_that_ends_while_the_broker_is_down_is_over(start, dial):
    server = start()
    job_id = dial(server).put(delay=1)
    server.kill()
    time.sleep(1)
    server.start()
    assert dial(server).reserve() == job_id


def test_ids_go_on_even_if_no_job_is_left(start, dial):
    server = start()
    for expected in (1, 2, 3):
        wire = dial(server)
        wire.send("put 0 0 1 1", "x", f"delete {expected}")  # in one transaction, most likely
        assert wire.read() == b"INSERTED %d" % expected
        assert wire.read() == b"DELETED"
        server.stop()
        server.start()


def test_a_stopped_broker_leaves_one_file(start, dial, tmp_path):
    server = start()
    dial(server).put()
    server.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]
    assert "in memory" not in server.announcement
    assert str(tmp_path / "jobs") in server.announcement


def test_a_broker_that_cannot_write_ends_without_acknowledging_more(start, dial):
    server, ids = start(), []
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (500_000, 500_000))
    wire = dial(server)
    with suppress(AssertionError, OSError):
        while len(ids) < 1000:
            ids.append(wire.put(b"x" * 5000))
    code, said = server.wait()
    assert code == 1
    assert re.fullmatch(r"Error: \S+/jobs cannot be used: .*\n", said)
    server.start()
    wire = dial(server)
    assert len(ids) > 10
    assert {wire.state(job_id) for job_id in ids} == {"ready"}


def test_a_full_disk_refuses_new_jobs_and_still_deletes(tmp_path):
    store, full = Store(), []
    commands = Dispatcher(store, 1000, 0.0, has_room=lambda _size: not full)
    client = commands.connect()
    assert commands.run(client, Command("put", numbers=(0, 0, 1, 1), body=b"x"), 0.0) == b"INSERTED 1\r\n"
    full.append(True)
    assert commands.run(client, Command("put", numbers=(0, 0, 1, 1), body=b"x"), 0.0) == b"OUT_OF_MEMORY\r\n"
    assert commands.run(client, Command("delete", numbers=(1,)), 0.0) == b"DELETED\r\n"
    with closing(Journal(tmp_path / "jobs")) as journal:
        assert journal.has_room(1)
        assert not journal.has_room(2**60)


def test_foreign_files_are_refused_and_left_unchanged(tmp_path):
    text = tmp_path / "text"
    text.write_text(
        "no database, but longer than one's header would be, a hundred bytes and more, so that it is read\n"
    )
    theirs = tmp_path / "theirs"
    with sqlite3.connect(theirs) as database:
        database.execute("CREATE TABLE job (id)")
    database.close()
    before = text.read_bytes(), theirs.read_bytes()
    for path, message in (
        (text, "is not an SQLite database: choose another file, or a new one"),
        (theirs, "is a database that this broker did not create"),
        (tmp_path / "nowhere" / "jobs", "its folder must exist"),
    ):
        code, said = run("--file", str(path))
        assert code == 1
        assert message in said
        assert said.count("\n") == 1
    assert (text.read_bytes(), theirs.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text", "theirs"]


def test_a_file_is_for_one_broker_at_a_time(start, dial, tmp_path):
    start()
    code, said = run("--file", str(tmp_path / "jobs"))
    assert code == 1
    assert "is open in another process: only one broker at a time may use a file" in said
