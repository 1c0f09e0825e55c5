"""A system without processes, for tests of the supervisor's decisions."""

from __future__ import annotations

import itertools
import time

from flask_backend.deaths import Exit
from flask_backend.supervisor.memory import Usage
from flask_backend.supervisor.process import Processes


class Clock:
    """A time that stands still until a test moves it. It begins now, as the rows of children use the real one."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


class NoProcesses(Processes):
    """Gives each child a number and no process, records the signals, and reports the exits that a test adds."""

    def __init__(self) -> None:
        self.refuses = False
        self.spawned: list[str] = []
        self.drained: list[int] = []
        self.killed: list[int] = []
        self.dumped: list[int] = []
        self.exits: list[Exit] = []
        self.private = 0  # bytes of each child
        self._pids = itertools.count(1)

    def spawn(self, name, _main, _links, *, keep_loan_of=None):
        if self.refuses:
            raise BlockingIOError("no more processes")
        self.spawned.append(name)
        return next(self._pids)

    def drain(self, pid):
        self.drained.append(pid)

    def kill(self, pid):
        self.killed.append(pid)

    def dump_stacks_of(self, pid):
        self.dumped.append(pid)

    dump_stacks_of_stuck = dump_stacks_of

    def reap(self, is_ours):
        while self.exits:
            exit_ = self.exits.pop(0)
            assert is_ours(exit_.pid)
            yield exit_

    def usage(self, _pid):
        return Usage(self.private, 0)

    def private_bytes(self, _pid):
        return self.private

    def show_plan(self, _pools, _children):
        pass
