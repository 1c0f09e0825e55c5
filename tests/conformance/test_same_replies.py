"""Random commands on both servers, with clients that connect and leave: the same replies, the same statistics."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from servers import START
from support.beanstalkd import installed_release
from support.waiting import wait_until
from wire import Wire

CLIENTS = 3
TUBES = ("a", "b", "default")
# Fields that differ between any two servers, or that are among the known differences.
INCOMPARABLE = re.compile(r"(pid|version|rusage.*|uptime|binlog-.*|id|hostname|os|platform|total-connections|cmd-.*)")
CLOCKS = re.compile(rb"^(age|time-left|pause-time-left): (\d+)$", re.MULTILINE)
ID = re.compile(rb"^(INSERTED |RESERVED |FOUND |OK \d+\r\n---\nid: )(\d+)")

# The embedded broker answers as 1.13 does: differences of earlier versions are left to their own tests.
IS_NEWEST = installed_release() >= (1, 13)
CONTROLS = [
    bytes([code]) for code in (*range(32), 127, 128, 255) if code != 13
]  # a carriage return: a known difference
COMMANDS = [
    *(
        b"put 0 0 1 1",
        b"use a",
        b"reserve",
        b"reserve-with-timeout 0",
        b"reserve-job 99",
        b"delete 99",
        b"release 99 1 1",
    ),
    *(b"bury 99 1", b"touch 99", b"watch a", b"ignore a", b"peek 99", b"peek-ready", b"peek-delayed", b"peek-buried"),
    *(b"kick 1", b"kick-job 99", b"stats", b"stats-job 99", b"stats-tube never-seen", b"list-tubes", b"list-tube-used"),
    *(b"list-tubes-watched", b"pause-tube never-seen 0", b"quit", b"no-command", b""),
]
QUOTED = re.compile(rb'^(tube|name): "(.*)"$', re.MULTILINE)

clients = st.integers(0, CLIENTS - 1)
tubes = st.sampled_from(TUBES)
jobs = st.integers(0, 9)  # the position in the list of all ids; past its end a job that does not exist
priorities = st.sampled_from([0, 0, 0, 1, 1023, 1024, 2**32 - 1])
delays = st.sampled_from([0, 0, 0, 100, 200])
bodies = st.sampled_from([b"", b"x", b"\r\n", b"y" * 50])
lines = st.sampled_from(
    [
        *("", "nothing", "use", "use ", "use a b", "watch :", "ignore -", "reserve 1", "reserve-with-timeout"),
        *(("reserve-with-timeout x", "reserve-with-timeout -1") if IS_NEWEST else ()),
        *("reserve-job", "delete", "delete 1 1", "release 1 1", "bury 1", "touch x", "kick"),
        *("kick x", "kick -1", "kick 2 x", "kick  1", "kick-job", "peek", "peek 0", "peek-ready 1", "stats x"),
        *("stats-job", "stats-tube", "list-tubesx", "pause-tube a", "pause-tube  a  0", "x" * 300, "put", "put 1 1 1"),
    ]
)


class Side:
    """One server, and this test's clients of it."""

    def __init__(self, control: Wire) -> None:
        self.control = control
        self.clients = [self.connect() for _ in range(CLIENTS)]
        self.ids: list[int] = []
        self.baseline = self.control.stats()

    def connect(self) -> Wire:
        """Connect, and wait until the server knows of it."""
        wire = Wire(self.control.socket.getpeername()[1])
        wire.ask("list-tube-used")
        return wire

    def normal(self, reply: bytes) -> bytes:
        """Make a reply comparable: ids by their position, lists sorted, clocks without their last second."""
        if reply.startswith(b"INSERTED"):
            self.ids.append(int(reply.split()[1]))
        reply = ID.sub(lambda found: b"%b#%d" % (found[1][:3], self.ids.index(int(found[2]))), reply)
        reply = QUOTED.sub(rb"\1: \2", reply)
        reply = CLOCKS.sub(lambda found: b"%b: %d" % (found[1], (int(found[2]) + 5) // 10), reply)
        if reply.startswith(b"OK") and b"\n- " in reply:
            return b"\n".join(sorted(reply.splitlines()))
        return re.sub(rb"^OK \d+", b"OK", reply)

    def id_of(self, job: int) -> int:
        return self.ids[job] if job < len(self.ids) else 2**40 + job

    def stats(self) -> dict[str, str | int]:
        """Return the server's statistics; counters that only grow are relative to the start of the test."""
        stats = {key: value for key, value in self.control.stats().items() if not INCOMPARABLE.fullmatch(key)}
        for key in ("total-jobs", "job-timeouts"):
            stats[key] = int(stats[key]) - int(self.baseline[key])
        return stats

    def count(self, key: str) -> int:
        return int(self.control.stats()[key])

    def close(self) -> None:
        """Clean up the server."""
        for client in self.clients:
            client.close()
        wait_until(lambda: self.count("current-connections") == 1, "all clients are gone")
        for job_id in self.ids:
            self.control.ask(f"delete {job_id}")
        self.control.ask("pause-tube default 0")


class BothServers(RuleBasedStateMachine):
    """Send each command to both servers, and compare everything observable."""

    def __init__(self, controls: list[Wire]) -> None:
        super().__init__()
        self.sides = [Side(control) for control in controls]
        self.waiting: int | None = None  # the client that waits in a reserve; one at a time: turns are not defined

    def teardown(self) -> None:
        for side in self.sides:
            side.close()

    def ask(self, client: int, line: str, job: int | None = None, body: bytes | None = None) -> None:
        if client == self.waiting:
            return
        replies: list[bytes] = []
        for side in self.sides:
            words = line if job is None else line.format(side.id_of(job))
            more = () if body is None else (body,)
            replies.append(side.normal(side.clients[client].ask(words, *more)))
        assert replies[0] == replies[1], f"{line!r}: {replies}"

    @rule(client=clients, tube=tubes)
    def use(self, client, tube):
        self.ask(client, f"use {tube}")

    @rule(client=clients, tube=tubes)
    def watch(self, client, tube):
        self.ask(client, f"watch {tube}")

    @rule(client=clients, tube=tubes)
    def ignore(self, client, tube):
        self.ask(client, f"ignore {tube}")

    @rule(client=clients, priority=priorities, delay=delays, body=bodies)
    def put(self, client, priority, delay, body):
        self.ask(client, f"put {priority} {delay} 500 {len(body)}", body=body)

    @rule(client=clients, body=bodies, count=st.integers(1, 4))
    def put_and_hold(self, client, body, count):
        """Return commands that give a job a life worth comparing."""
        for _ in range(count):
            self.ask(client, f"put 0 0 500 {len(body)}", body=body)
            if self.waiting != client:
                self.ask(client, "reserve-with-timeout 0")

    @rule(client=clients, priority=priorities)
    def bury_all_that_is_held(self, client, priority):
        for job in range(10):
            self.ask(client, f"bury {{}} {priority}", job)

    @rule(client=clients)
    def put_too_much(self, client):
        self.ask(client, "put 0 0 1 1001", body=b"x" * 1001)

    @rule(client=clients)
    def reserve_at_once(self, client):
        self.ask(client, "reserve-with-timeout 0")

    @precondition(lambda self: self.waiting is None)
    @rule(client=clients, line=st.sampled_from(["reserve", "reserve-with-timeout 1000"]))
    def reserve(self, client, line):
        for side in self.sides:
            side.clients[client].send(line)
        self.waiting = client
        for side in self.sides:
            wire = side.clients[client]
            wait_until(lambda s=side, w=wire: w.has_reply() or s.count("current-waiting"), "it waits, or is answered")
        self.read_what_waited()

    @rule(client=clients, job=jobs)
    def reserve_job(self, client, job):
        self.ask(client, "reserve-job {}", job)

    @rule(client=clients, job=jobs)
    def delete(self, client, job):
        self.ask(client, "delete {}", job)

    @rule(client=clients, job=jobs, priority=priorities, delay=delays)
    def release(self, client, job, priority, delay):
        self.ask(client, f"release {{}} {priority} {delay}", job)

    @rule(client=clients, job=jobs, priority=priorities)
    def bury(self, client, job, priority):
        self.ask(client, f"bury {{}} {priority}", job)

    @rule(client=clients, job=jobs, command=st.sampled_from(["touch", "kick-job", "peek", "stats-job"]))
    def command_for_a_job(self, client, job, command):
        self.ask(client, f"{command} {{}}", job)

    @rule(client=clients, bound=st.integers(1, 3))
    def kick(self, client, bound):
        self.ask(client, f"kick {bound}")

    @rule(client=clients, state=st.sampled_from(["ready", "delayed", "buried"]))
    def peek(self, client, state):
        self.ask(client, f"peek-{state}")

    @rule(client=clients, line=st.sampled_from(["list-tubes", "list-tube-used", "list-tubes-watched"]))
    def list(self, client, line):
        self.ask(client, line)

    @rule(client=clients, tube=tubes)
    def stats_tube(self, client, tube):
        self.ask(client, f"stats-tube {tube}")

    @rule(client=clients, tube=tubes, delay=st.sampled_from([0, 1000]))
    def pause(self, client, tube, delay):
        self.ask(client, f"pause-tube {tube} {delay}")

    @rule(client=clients, line=lines)
    def say_something_malformed(self, client, line):
        self.ask(client, line)

    @rule(client=clients, how=st.sampled_from(["close", "quit", "half a command"]))
    def leave_and_come_back(self, client, how):
        for side in self.sides:
            wire, others = side.clients[client], side.count("current-connections") - 1
            if how != "close" and client != self.waiting:
                wire.socket.sendall(b"quit\r\n" if how == "quit" else b"put 0 0 1 5\r\nab")
            wire.close()
            wait_until(lambda s=side, n=others: s.count("current-connections") == n, "it is gone")
        if client == self.waiting:
            self.waiting = None
        self.read_what_waited()  # it may have received a held job: before any other client acts
        for side in self.sides:
            side.clients[client] = side.connect()

    @invariant()
    def statistics_are_the_same(self):
        real, embedded = (side.stats() for side in self.sides)
        assert real == embedded
        self.read_what_waited()

    def read_what_waited(self) -> None:
        if self.waiting is None:
            return
        has_reply = [side.count("current-waiting") == 0 for side in self.sides]
        assert has_reply[0] == has_reply[1]
        if has_reply[0]:
            real, embedded = (side.normal(side.clients[self.waiting].read()) for side in self.sides)
            assert real == embedded
            self.waiting = None


@pytest.fixture
def controls():
    """Open a connection to each server for inspection."""
    servers = [start(max_job_size=1000) for start in START.values()]
    wires = [Wire(server.port) for server in servers]
    yield wires
    for wire, server in zip(wires, servers, strict=True):
        wire.close()
        server.stop()


def test_random_commands_have_the_same_replies(controls):
    run_state_machine_as_test(
        lambda: BothServers(controls),
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_a_control_byte_anywhere_in_a_line_has_the_same_reply(controls):
    for byte in CONTROLS:
        for line in lines_with(byte):
            real, embedded = (wire.ask(line) for wire in controls)
            assert real == embedded, line
            if byte == b"\0":
                assert real == b"BAD_FORMAT", line


def lines_with(byte: bytes) -> set[bytes]:
    """Return each command with a byte at each place, without those that have no reply."""
    found = {command[:at] + byte + command[at:] for command in COMMANDS for at in range(len(command) + 1)}
    if byte == b"\0":
        return found
    if not IS_NEWEST:
        found.discard(b"reserve-with-timeout %b0" % byte)
    return {line for line in found if not line.startswith(b"quit")}
