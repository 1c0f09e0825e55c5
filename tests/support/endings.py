"""An app whose processes have cleanup to do when they end, and whose tasks fork: the ledger records what was done."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flask import Flask

from flask_backend import Backend, Retry

QUEUE = "com.example/default"

app = Flask(__name__)
backend = Backend(app)
ledger = Path(os.environ.get("LEDGER", os.devnull))
options = set(os.environ.get("ENDING", "").split())
pool = ThreadPoolExecutor(1)


def write_down(text):
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def run_for_ever():
    while True:
        time.sleep(1)


if "import_thread" in options:
    threading.Thread(target=run_for_ever, name="prices").start()
if "import_fails" in options:
    raise RuntimeError("no settings")
if "import_scratch" in options:  # cleaned up at its end by the process that imports the app
    scratch = tempfile.TemporaryDirectory()
    write_down(f"scratch {scratch.name}")
    helper = multiprocessing.get_context("fork").Process(target=run_for_ever, daemon=True)
    helper.start()
    write_down(f"helper {helper.pid}")
if "import_handler" in options:
    atexit.register(lambda: write_down(f"handler of the import {os.getpid()}"))
if "handler_crashes" in options:
    importer = os.getpid()
    atexit.register(lambda: os.getpid() == importer or os.kill(os.getpid(), signal.SIGSEGV))


class Tracker:
    """Deliver events as the clients of error trackers and trace collectors do.

    Events wait in a queue; a daemon thread, restarted in a forked process, delivers batches of them at intervals;
    and an exit handler, registered once at the import, delivers the rest.
    """

    def __init__(self):
        self.events = queue.Queue()
        self.thread = None
        self.pid = None
        self.is_flushing = threading.Event()
        atexit.register(self.flush)

    def capture(self, event):
        if self.pid != os.getpid():
            self.pid = os.getpid()
            self.thread = threading.Thread(target=self.deliver, daemon=True)
            self.thread.start()
        self.events.put(event)

    def deliver(self):
        while True:
            self.is_flushing.wait(5)
            event = self.events.get()
            time.sleep(0.05)  # for the network
            write_down(f"delivered {event}")
            self.events.task_done()

    def flush(self):
        if self.pid == os.getpid():
            self.is_flushing.set()
            self.events.join()


tracker = Tracker()


@backend.before_first_task(QUEUE)
def hook():
    if "hook_thread" in options:
        threading.Thread(target=run_for_ever, name="prices").start()
    if "hook_fails" in options:
        raise RuntimeError("no database")
    if "hook_forks" in options and os.fork() == 0:
        write_down(f"forked {os.getpid()}")
        return
    atexit.register(write_down, "handler of the hook")


@backend.task(QUEUE)
def leave_work():
    """Start work that the process must finish when it ends."""
    threading.Thread(target=finish, args=["thread"]).start()
    pool.submit(finish, "future")
    print("printed by the task")  # noqa: T201
    write_down("task")


def finish(what):
    time.sleep(0.5)
    write_down(what)


@backend.task(QUEUE)
def leave_thread(name):
    threading.Thread(target=run_for_ever, name=name).start()
    write_down(f"{name} {os.getpid()}")


@backend.task(QUEUE)
def leave_handler():
    atexit.register(run_for_ever)
    write_down(f"handler {os.getpid()}")


@backend.task(QUEUE)
def capture(number):
    tracker.capture(number)


@backend.task(QUEUE)
def wait_for(path):
    write_down("begin")
    while not Path(path).exists():
        time.sleep(0.005)
    write_down("waited")


@backend.task(QUEUE)
def use_scratch():
    write_down(f"scratch is there: {Path(scratch.name).is_dir()}")


@backend.task(QUEUE, retry=Retry(max_retries=0))
def fork(how):
    """Fork a process that ends in one of several ways, and record how its parent sees it."""
    print("printed by the parent")  # noqa: T201
    pid = os.fork()
    if pid == 0:
        come_back(how)
        return
    write_down(f"{how}: {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


def come_back(how):
    print("printed by the child")  # noqa: T201
    match how:
        case "raises":
            raise ValueError("the child has failed")
        case "exits":
            sys.exit(3)
        case "exits with a text":
            sys.exit("the child is at a loss")
        case "is interrupted":
            raise KeyboardInterrupt
        case "exits at once":
            os._exit(4)
        case "starts a thread":
            threading.Thread(target=finish, args=["thread of the child"]).start()
        case "registers a handler":
            atexit.register(write_down, "handler of the child")


@backend.task(QUEUE)
def start_processes():
    """Use multiprocessing in each of its ways, and leave two processes: Python terminates one, and joins one."""
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with context.Pool(1) as workers:
            write_down(f"{method}: {workers.map(abs, [-1])}")
    with multiprocessing.Manager() as manager:
        write_down(f"manager: {list(manager.list([1]))}")
    fork = multiprocessing.get_context("fork")
    fork.Process(target=run_for_ever, daemon=True).start()
    fork.Process(target=finish, args=["process"]).start()
    write_down("started")
