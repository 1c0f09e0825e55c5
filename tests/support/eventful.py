"""A program that supervises processes which only wait, and records its events in the ledger, without Flask or a broker.

``RECEIVER`` says how the receiver of events misbehaves at the first worker that exits, ``SENDER_S`` is the helpers'
deadline, and ``DEAF`` means that no receiver is connected. ``QUEUES`` are names.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from flask_backend.supervisor import (
    Bounds,
    Descriptors,
    EventName,
    EventSink,
    Handover,
    Notifier,
    Pool,
    ServiceManager,
    Supervisor,
    SupervisorOptions,
    Terminal,
    Work,
    events,
    is_check,
)

QUEUES = os.environ.get("QUEUES", "q").split()
HOW = os.environ.get("RECEIVER", "")


def wait(context):
    context.accept_signals()
    ours, _theirs = socket.socketpair()
    context.lend(ours.fileno())
    context.ready()
    write_down(ready=os.getpid())
    while True:
        signal.pause()


def write_down(**facts) -> None:
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, json.dumps(facts).encode() + b"\n")
    os.close(fd)


def receive(event) -> None:
    if event.name == EventName.WORKER_EXITED:
        match HOW:
            case "blocks":
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                write_down(blocks=os.getpid())
                time.sleep(600)
            case "raises":
                raise ValueError("no such channel")
            case "exits":
                sys.exit("enough")
            case "crashes":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "starts a thread":
                threading.Thread(target=time.sleep, args=(600,)).start()
    write_down(name=event.name, description=event.description, sender=os.getpid(), fds=open_files(), **event.facts)


def open_files() -> list[str]:
    return [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("flask_backend").setLevel(logging.INFO)
    if is_check():
        os._exit(0)
    events.DEADLINE_S = float(os.environ.get("SENDER_S", events.DEADLINE_S))
    handover = Handover.take()
    workers, drain_timeout_s = int(sys.argv[1]), float(sys.argv[2])
    notifier = Notifier(handover.manager if handover else ServiceManager.take())
    descriptors = Descriptors.count(
        soft=handover.soft_limit if handover else None, ours=len(handover.descriptors()) if handover else 0
    )
    options = SupervisorOptions(drain_timeout_s, descriptors=descriptors, terminal=Terminal.find())
    sink = EventSink(wants=lambda _name: "DEAF" not in os.environ, send=receive)
    work = Work(body=wait, labels={name: [] for name in QUEUES}, settle=lambda _fd, _death, _crashes: 0, events=sink)
    os._exit(
        Supervisor([Pool(name, Bounds.fixed(workers)) for name in QUEUES], work, options, notifier, handover).run()
    )


main()
