"""The app that the tests' workers run: its tasks record what they do, or misbehave on request."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from flask import Flask, current_app, g

from flask_backend import (
    Backend,
    BrokerConnectionError,
    Bury,
    Discard,
    JobNotFoundError,
    Retry,
    RetryLater,
    TaskTimeout,
    current_job,
)

QUEUE = "com.example/default"
INBOX = "com.example/inbox"

app = Flask(__name__)
app.config.from_prefixed_env()
backend = Backend(app)
ledger = Path(os.environ.get("LEDGER", os.devnull))

# A preloaded app of the size of a real one: pages that the workers share until a process writes to them.
ballast = bytearray(os.urandom(1 << 20) * int(os.environ.get("BALLAST_MB", "0")))

if "SLOW_IMPORT" in os.environ:
    Path(os.environ["SLOW_IMPORT"]).touch()
    try:
        time.sleep(60)
    except BaseException:
        if "CAREFREE_IMPORT" not in os.environ:
            raise

if "VERSION_IN" in os.environ:
    sys.path.insert(0, os.environ["VERSION_IN"])
    importlib.import_module("version")
if slow := os.environ.get("SLOW_VERSION"):
    # The first import finds no such file; then come the process that checks new code, and the new code itself.
    mark = next(path for n in (0, 1, 2) if not (path := Path(f"{slow}.{n}")).exists())
    mark.touch()
    while mark.name.endswith(".2") and Path(slow).exists():
        time.sleep(0.01)


def write_down(text: str) -> None:
    """Append a line to the ledger, whole, even with concurrent writers."""
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


@app.teardown_appcontext
def after_context(_error):
    if "witness" in g:
        write_down(f"teardown {g.witness}")


@backend.before_first_task(QUEUE)
def hook():
    write_down(f"hook {os.getpid()}")
    assert current_app.name == app.name
    if gate := os.environ.get("HOOK_WAITS_FOR"):
        while not Path(gate).exists():
            time.sleep(0.01)
    if gate := os.environ.get("HOOK_WAITS_WHILE"):
        while Path(gate).exists():
            time.sleep(0.01)
    if os.environ.get("HOOK_FAILS") or getattr(sys.modules.get("version"), "FAIL_IN_HOOK", False):
        raise RuntimeError("the hook has no database")


@backend.before_first_task(INBOX)
def inbox_hook():
    write_down(f"inbox_hook {os.getpid()}")


@backend.receiver(INBOX)
def inbox(message):
    if message == "sleep":
        time.sleep(600)
    if message == "fail":
        raise ValueError("no such message")
    write_down(f"inbox {message!r}")


@backend.task(QUEUE)
def note(text):
    write_down(f"note {text}")


@backend.task(QUEUE)
def version():
    write_down(f"version {sys.modules['version'].VERSION}")


@backend.task(QUEUE)
def pid():
    write_down(f"pid {os.getpid()}")


@backend.task(QUEUE)
def context(text):
    assert "witness" not in g
    g.witness = text
    write_down(f"{current_app.name} {text}")


@backend.task(QUEUE)
def sleep(seconds, text="slept"):
    write_down(f"begin {text}")
    time.sleep(seconds)
    write_down(text)


@backend.task(QUEUE)
def wait_for(path, text="waited"):
    write_down(f"begin {text}")
    while not Path(path).exists():
        time.sleep(0.005)
    write_down(text)


@backend.task(QUEUE)
def fail_when(path):
    write_down("begin to fail")
    while not Path(path).exists():
        time.sleep(0.005)
    raise ValueError("as it should")


@backend.task(QUEUE)
def hold_gil(seconds):
    write_down("begin hold_gil")
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


@backend.task(QUEUE)
def hog():
    """Compute, for minutes, in one call that neither releases the interpreter nor checks for signals."""
    write_down("begin hog")
    sum(range(10**11))


@backend.task(QUEUE, time_limit=0.3)
def limited(how):
    """Take too long, in one of several ways."""
    write_down(f"limited {how}")
    try:
        if how == "sleep":
            time.sleep(600)
        elif how == "compute":
            while True:
                pass
        elif how == "select":
            select.select([], [], [], 600)
        elif how == "stubborn":
            stubborn()
        elif how == "blocked":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(600)
        elif how == "hog":
            sum(range(10**11))
    except TaskTimeout:
        write_down("TaskTimeout")
        raise


@backend.task(QUEUE, time_limit=0.3)
def log_for_ever():
    try:
        while True:
            app.logger.info("again and again")
    except TaskTimeout:
        write_down("TaskTimeout")


@backend.task(QUEUE, time_limit=0.2)
def touch_for_ever():
    try:
        while True:
            current_job.touch()
    except TaskTimeout:
        write_down("TaskTimeout")


def stubborn():
    while True:
        with suppress(TaskTimeout):
            time.sleep(600)


@backend.task(QUEUE)
def fail(text="no luck"):
    write_down("fail")
    raise ValueError(text)


@backend.task(QUEUE)
def print_and_fail(text):
    for stream in (sys.stdout, sys.stderr):
        stream.write(f"{text}\n")
        stream.flush()
    raise ValueError(text)


@backend.task(QUEUE, retry=Retry(max_retries=1, min_backoff=5, on=(ValueError, KeyError), never=KeyError))
def choosy(kind):
    """Raise an exception that its policy retries once, or not at all."""
    raise {"retried": ValueError, "never": KeyError, "not on": OSError}[kind]("no luck")


@backend.task(QUEUE, retry=Retry(max_retries=2))
def decide(how):
    """Decide itself how its job is settled."""
    write_down(f"decide {how}")
    raise {"later": RetryLater(30, "busy"), "bury": Bury("no such user"), "discard": Discard("too late")}[how]


@backend.task(QUEUE)
def tell_job(extra=None):
    """Record what it knows of its job."""
    fresh = 0 <= current_job.age < 600
    write_down(
        f"job {current_job.id} {current_job.queue} {current_job.endpoint} {current_job.attempt} "
        f"{current_job.will_retry} {sorted(current_job.headers)} {fresh}"
    )
    if extra == "fail":
        raise ValueError("no luck")
    if extra == "fork":
        if os.fork() == 0:
            try:
                current_job.touch()
            except BrokerConnectionError as error:
                write_down(f"in a fork: {error}")
            os._exit(0)
        os.wait()
    if extra == "touch":
        current_job.touch()
        write_down("touched")
        while True:
            try:
                current_job.touch()
            except JobNotFoundError:
                write_down("no longer held")
                return
            time.sleep(0.01)


@backend.task(QUEUE)
def leave(how):
    write_down(f"leave {how}")
    if how == "sys.exit":
        sys.exit(0)
    elif how == "interrupt":
        raise KeyboardInterrupt
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how.startswith("exit"):
        os._exit(int(how.split()[1]))
    elif how == "generator":
        raise GeneratorExit
    elif how == "recursion":
        leave.function.__globals__["recurse"]()


def recurse():
    recurse()


@backend.task(QUEUE)
def die_once(how, marker):
    """Crash its worker the first time."""
    write_down(f"die_once {os.getpid()}")
    if not Path(marker).exists():
        Path(marker).touch()
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        os._exit(int(how))
    write_down("survived")


@backend.task(QUEUE)
def grow(megabytes, path=None):
    """Keep memory for as long as the process lives."""
    app.extensions.setdefault("hoard", []).append(os.urandom(1 << 20) * megabytes)
    write_down(f"grow {os.getpid()}")
    while path and not Path(path).exists():
        time.sleep(0.005)


@backend.task(QUEUE)
def devour():
    """Allocate more and more memory."""
    hoard = []
    while True:
        hoard.append(os.urandom(1 << 20))
        time.sleep(0.002)


@backend.task(QUEUE)
def touch_ballast():
    """Read the preloaded objects."""
    write_down(f"sum {sum(ballast[::4096]) >= 0}")


@backend.task(QUEUE)
def rewrite_ballast():
    """Write to every page of the preloaded objects."""
    ballast[::4096] = bytes(len(ballast[::4096]))
    write_down("rewritten")


@backend.task(QUEUE)
def start_process(path):
    """Start a process that outlives its task, and write down its pid."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    write_down(f"started {process.pid}")
    while not Path(path).exists():
        time.sleep(0.005)


@backend.task(QUEUE)
def fork_and_return():
    if os.fork() == 0:
        write_down(f"forked {os.getpid()}")
        return
    os.wait()


@backend.task(QUEUE)
def use_multiprocessing():
    """Start a process as the standard library does, schedule a task from it, and terminate another."""
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # forking beside our second thread
        helper = context.Process(target=note, args=["from a helper"])
        helper.start()
        helper.join()
        codes = [helper.exitcode]
        for _ in range(20):  # at any moment of its start
            sleeper = context.Process(target=time.sleep, args=[600])
            sleeper.start()
            sleeper.terminate()
            sleeper.join()
            codes.append(sleeper.exitcode)
    write_down(f"terminated {codes == [0] + [-signal.SIGTERM] * 20}")


class Held:
    """An object that a failing task holds."""

    alive: ClassVar = weakref.WeakSet()


@backend.task(QUEUE)
def fail_holding():
    gc.disable()
    write_down(f"held {len(Held.alive)}")
    held = Held()
    Held.alive.add(held)
    raise ValueError(held)


@backend.task(QUEUE)
def chain(text):
    note(text)


@backend.task(QUEUE)
async def asynchronous(text):
    write_down(f"async {text}")


@backend.task(QUEUE)
async def wait_in_coroutines(path):
    write_down("begin to wait")
    await wait_inside(Path(path))


async def wait_inside(path):
    while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110  # another process makes the file
        await asyncio.sleep(0.01)


@backend.task(QUEUE)
def compute(path):
    """Call functions without a pause."""
    write_down("begin to compute")
    while not Path(path).exists():
        [str(number) for number in map(abs, range(1000))]
    write_down("computed")


@backend.task(QUEUE)
def mark(number, seconds):
    """Record which process runs it, in the middle of a given time."""
    time.sleep(seconds / 2)
    write_down(f"mark {number} {os.getpid()}")
    time.sleep(seconds / 2)
