"""The app that runs generated bodies: it writes down each call, and whatever a worker executes besides."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from flask import Flask

from flask_backend import Backend, Bury, Retry, current_job
from support.bodies import INBOX, TASKS, digest

LATER_S = 50_000  # retries do not come while the test runs

app = Flask(__name__)
app.config.from_prefixed_env()
app.config["BACKEND_RETRY"] = Retry(min_backoff=LATER_S, max_backoff=LATER_S)
backend = Backend(app)
port = backend.settings_of(app).address.port
ledger = os.open(Path(os.environ.get("LEDGER", os.devnull)), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


CANARY = "os.system"
# Events of Python's audit hooks that no task here causes: code, processes, files and connections from a body.
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "pickle.find_class",
)
_FORBIDDEN += ("ctypes.dlopen", "os.remove", "os.rename", "os.rmdir", "os.chmod", "socket.bind")


def watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        told = "" if args[1][1] == port else f"connect {args[1]!r}"
    elif event in _FORBIDDEN:
        told = event
    elif event == "exec" and args[0].co_filename == "<string>":
        told = "exec of a string"
    elif event == "open" and args[0] != os.devnull and isinstance(args[2], int) and args[2] & os.O_ACCMODE:
        told = f"open {args[0]!a}"
    else:
        return
    if told:
        os.write(ledger, f"executed {told}\n".encode())


@backend.before_first_task(TASKS)
@backend.before_first_task(INBOX)
def begin() -> None:
    sys.addaudithook(watch)
    sys.audit(CANARY)  # it is alive


def write_down(endpoint: str, args: Any, kwargs: Any) -> None:
    os.write(ledger, f"{current_job.id} {digest(endpoint, args, kwargs)}\n".encode())


@backend.task(TASKS)
def record(*args, **kwargs):
    write_down("record", args, kwargs)
    if len(args) == 1:
        app.logger.info("recorded %s", str(args)[:2000])


@backend.task(TASKS)
def exact(a, *, b):
    write_down("exact", [a], {"b": b})


@backend.task(TASKS)
def fail(*args, **kwargs):
    raise ValueError(*args, *kwargs)


@backend.task(TASKS, retry=Retry(max_retries=0))
def fail_for_good(*args, **kwargs):
    raise LookupError("\n".join(map(str, [*args, *kwargs.values()])))


@backend.task(TASKS, endpoint="décide")
def decide(*args, **kwargs):
    raise Bury(f"{args}{''.join(kwargs)}"[:5000])


@backend.receiver(INBOX)
def receive(message):
    write_down("receive", [message], {})
    app.logger.info("received a message")
