"""Measure the CPU that each page of the dashboard takes: with a million buried jobs in a hundred queues.

Usage: python benchmarks/dashboard.py [--jobs N] [--queues N] [--rounds N]. Prints, for each page, the CPU of the web
process and of the broker in ms: the first time, when nothing has been read yet, and again, when the stories are in
memory. The exit code is 1 if a page takes the web process more than 50 ms. Needs beanstalkd, and about 700 MB.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from cpu import cpu_s
from flask import Flask
from flask.testing import FlaskClient
from support.beanstalkd import RealBeanstalkd

from flask_backend import Backend
from flask_backend.dashboard import Dashboard
from flask_backend.names import failures_tube
from flask_backend.stories import MAX_WHOLE, Story

LIMIT_MS = 50.0
AT_ONCE = 500  # commands in flight
TRACEBACK = "Traceback (most recent call last):\n" + '  File "/srv/app/tasks.py", line 12, in task\n    work()\n' * 70
READERS = "backend.dashboard.stories"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--queues", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    broker = RealBeanstalkd()
    try:
        began = time.monotonic()
        fill(broker.port, options.jobs, options.queues)
        print(f"{options.jobs:,} buried jobs in {options.queues} queues, after {time.monotonic() - began:.0f} s\n")
        return show(measure(broker, options.rounds))
    finally:
        broker.kill()


# -- the broker --------------------------------------------------------------------------------------------------


def fill(port: int, jobs: int, queues: int) -> None:
    """Bury jobs with stories as workers do: most in the first queue, whose stories came last; and one delayed job."""
    small = min(1000, jobs // queues)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for number in range(1, queues):
            bury(connection, f"com.example/q{number:03}", small, 86_400)
        bury(connection, "com.example/q000", jobs - small * (queues - 1), 0)
        ask(connection, [b"use com.example/q000\r\n", b"put 0 100000 60 2\r\n{}\r\n"])


def bury(connection: socket.socket, queue: str, count: int, age_s: int) -> None:
    """Bury jobs of a queue, a thousand a second; the last one ``age_s`` ago."""
    begin = time.time() - age_s - count / 1000
    tube = failures_tube(queue)
    ask(connection, [b"watch %b\r\n" % queue.encode(), b"ignore default\r\n"])
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(count, start + AT_ONCE))
        bodies = [b'{"endpoint":"task%d","args":[%d],"headers":{"id":"%032x"}}' % (n % 7, n, n) for n in numbers]
        puts = [b"put 0 0 60 %d\r\n%b\r\n" % (len(body), body) for body in bodies]
        inserted = ask(connection, [b"use %b\r\n" % queue.encode(), *puts])[1:]
        ids = [int(line.split()[1]) for line in inserted]
        ask(connection, [b"reserve-job %d\r\n" % job_id for job_id in ids], lines=2)
        notes = [a_note(queue, job_id, n, begin + n / 1000) for job_id, n in zip(ids, numbers, strict=True)]
        told = [(note.priority, note.encode()) for note in notes]
        puts = [b"put %d 0 60 %d\r\n%b\r\n" % (priority, len(note), note) for priority, note in told]
        ask(connection, [b"use %b\r\n" % tube.encode(), *puts])
        ask(connection, [b"bury %d 0\r\n" % job_id for job_id in ids])
    ask(connection, [b"watch default\r\n", b"ignore %b\r\n" % queue.encode()])


def a_note(queue: str, job_id: int, number: int, at: float) -> Story:
    """Return the story of a job: the first ones are whole, and there are a few kinds."""
    story = Story(
        job_id, queue, "failed 10 times", at, "web1", 4711, f"task{number % 7}", f"task({number})",
        f"app.errors.Error{number % 11}", f"no luck with {number}", TRACEBACK, 10, 10, at - 600, None, 0.5,
    )  # fmt: skip
    return story if number < MAX_WHOLE // 10 or (number % 100 == 0 and number < MAX_WHOLE * 100) else story.shortened()


def ask(connection: socket.socket, commands: list[bytes], lines: int = 1) -> list[bytes]:
    """Send commands, and return the lines of the replies: ``lines`` for each."""
    connection.sendall(b"".join(commands))
    received = bytearray()
    while received.count(b"\r\n") < lines * len(commands):
        received += connection.recv(1 << 20)
    return bytes(received).split(b"\r\n")[:-1]


# -- the pages ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Cost:
    """What a page took, in ms of CPU."""

    web: list[float] = field(default_factory=list[float])
    broker: list[float] = field(default_factory=list[float])


def measure(broker: RealBeanstalkd, rounds: int) -> dict[str, tuple[Cost, Cost]]:
    app = make_app(broker.uri)
    client = app.test_client()
    client.get("/backend/actions")  # compiles the layout
    costs: dict[str, tuple[Cost, Cost]] = {}
    for name, path in find_pages(client).items():
        client.get(path)  # compiles its template
        costs[name] = Cost(), Cost()
        for _ in range(rounds):
            app.extensions.pop(READERS, None)
            for cost in costs[name]:
                get(client, path, broker.process.pid, cost)
    return costs


def make_app(uri: str) -> Flask:
    app = Flask("shop")
    app.config["BACKEND_CONNECTION_URI"] = uri
    backend = Backend(app)
    backend.task("com.example/q000", endpoint="task0")(lambda number: number)
    app.register_blueprint(Dashboard(authorize=lambda _action, _what: True))
    return app


def find_pages(client: FlaskClient) -> dict[str, str]:
    """Return the paths of the pages, by what they show."""
    found = json.loads(client.get("/backend/failures.json").data)
    group = next(each for each in found["groups"] if each["queue"] == "com.example/q000")
    asked = f"queue={group['queue']}&task={group['endpoint']}&kind={group['kind']}"
    jobs = json.loads(client.get(f"/backend/failures/group.json?{asked}").data)["jobs"]
    job, note = jobs[0]["job"], jobs[0]["note"]
    paths = {
        "queues": "",
        "queue": f"queue?queue={group['queue']}",
        "failures": "failures",
        "failures that match": "failures?pattern=task1/*Error3",
        "failures as JSON": "failures.json",
        "group": f"failures/group?{asked}",
        "group, looking further": f"failures/group?{asked}&before={note // 2}",
        "group of a small queue": f"failures/group?{asked.replace('q000', 'q050')}",
        "failure": f"job?id={job}&note={note}",
        "failure without its note": f"job?id={job}",
        "question for all that match": f"failures/retry?{asked}&newest={note}&until=9e9",
        "workers": "workers",
        "schedules": "schedules",
        "batches": "batches",
        "actions": "actions",
    }
    return {name: f"/backend/{path}" for name, path in paths.items()}


def get(client: FlaskClient, path: str, broker: int, cost: Cost) -> None:
    before, broker_before = time.process_time(), cpu_s(broker)
    answer = client.get(path)
    cost.web.append((time.process_time() - before) * 1e3)
    cost.broker.append((cpu_s(broker) - broker_before) * 1e3)
    if answer.status_code != 200:  # OK
        raise RuntimeError(f"{path} answered {answer.status}:\n{answer.text}")


def show(costs: dict[str, tuple[Cost, Cost]]) -> int:
    print(f"{'':<30}{'first: web':>12}{'most':>8}{'broker':>8}{'again: web':>13}{'most':>8}{'broker':>8}")
    is_over = False
    for name, both in costs.items():
        line = f"{name:<30}"
        for cost, width in zip(both, (12, 13), strict=True):
            most = max(cost.web)
            is_over |= statistics.median(cost.web) > LIMIT_MS
            line += f"{statistics.median(cost.web):>{width}.1f}{most:>8.1f}{statistics.median(cost.broker):>8.1f}"
        print(line)
    print(f"\nms of CPU: medians and the most; {'MORE' if is_over else 'not more'} than {LIMIT_MS:.0f} ms")
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main())
