"""The only module that forks, kills and waits."""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from flask_backend.deaths import Exit
from flask_backend.system.exits import ExitCode, disown, leave_at_once
from flask_backend.system.loggers import get_logger
from flask_backend.system.procfs import PROC_IS_THERE, read_memory, read_stat
from flask_backend.system.stacks import STUCK, dump_on_signal
from flask_backend.system.streams import flush
from flask_backend.system.titles import show_worker

from .descriptors import Descriptors
from .inbox import Inbox, ReportKind
from .loans import Loans
from .memory import Usage
from .notify import Notifier
from .scoreboard import Row

# An import needs a descriptor, and the loop may have run out of them: import early what calls would import later.
for needed in ("array", *([] if PROC_IS_THERE else ["psutil"])):
    importlib.import_module(needed)

logger = get_logger("flask_backend.supervisor")

_PR_SET_PDEATHSIG = 1  # prctl(2)
_OOM_MAX = 1000  # proc(5); each 10 count as a hundredth of the machine's memory
_OOM_MORE = 200


class Lifeline:
    """A pipe that is never written to: children see its end when its only writer, the supervisor, is gone."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()
        self._old_ones: list[int] = []  # for children that an earlier image of this process started

    @property
    def write_ends(self) -> list[int]:
        return [self._write_end, *self._old_ones]

    def keep(self, write_ends: Iterable[int]) -> None:
        self._old_ones += write_ends

    def let_go_of_old_ones(self) -> None:
        while self._old_ones:
            os.close(self._old_ones.pop())

    def close_in_child(self) -> None:
        self.let_go_of_old_ones()
        os.close(self._write_end)


@dataclass(frozen=True, slots=True)
class Links:
    """The connections between the supervisor and its children."""

    inbox: Inbox
    lifeline: Lifeline
    loans: Loans
    notifier: Notifier
    descriptors: Descriptors

    def close_in_child(self, *, keep_loan_of: int | None = None) -> None:
        """Close the supervisor's own descriptors, and restore the limit of descriptors that it raised."""
        self.inbox.close_in_child()
        self.lifeline.close_in_child()
        self.loans.close_in_child(keep=keep_loan_of)
        self.notifier.close_in_child()
        self.descriptors.put_back()


class ChildContext:
    """The argument of a child's body: its pool and row, and how to report."""

    def __init__(self, pool: str, row: Row, links: Links, mask: Iterable[int]) -> None:
        self.pool = pool
        self.lifeline = links.lifeline.read_end
        self._links = links
        self._mask = mask
        self._row = row
        # The body writes to the row directly, since it does so for every job.
        self.live, self.begin, self.run, self.end = row.live, row.begin, row.run, row.end
        self.was_told_to_drain, self.heard_drain = row.was_told_to_drain, row.heard_drain

    def accept_signals(self) -> None:
        """Unblock signals once the body has installed its handlers. Earlier ones are pending, not lost."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def ready(self) -> None:
        self.show("")
        self._links.inbox.report(ReportKind.READY)

    def leaving(self) -> None:
        self.show("ending")
        self._row.leave()
        self._links.inbox.report(ReportKind.LEFT)

    def recycle_due(self) -> None:
        self._links.inbox.report(ReportKind.RECYCLE_DUE)

    def lend(self, fd: int) -> None:
        self._links.loans.lend(fd)

    def show(self, activity: str) -> None:
        show_worker(self.pool, activity)


Body = Callable[[ChildContext], int]


def spawn(body: Body, pool: str, row: Row, links: Links, *, keep_loan_of: int | None = None) -> int:
    """Fork a child that runs ``body`` and exits with the code that it returns; return its pid.

    Of the sockets that other children have lent, it keeps only that of the child ``keep_loan_of``.

    Signals are blocked across the fork, and stay blocked in the child until it has its own handlers: the parent's
    handlers would lose an early TERM.
    """
    flush()
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(parent, body, ChildContext(pool, row, links, mask), links, keep_loan_of)
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # in the parent too, so that the group exists before a kill
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _be_child(parent: int, body: Body, context: ChildContext, links: Links, keep_loan_of: int | None) -> None:
    """Run the child. This never returns: the stack below belongs to the parent."""
    status: int = ExitCode.FAILED
    try:
        disown()
        os.setpgid(0, 0)  # the terminal's Ctrl-C is for the supervisor alone
        links.close_in_child(keep_loan_of=keep_loan_of)
        _die_before(parent)
        for number in (signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(
                number, signal.SIG_IGN
            )  # outside the terminal's group, terminal access must not stop the child
        dump_on_signal()
        gc.enable()
        context.show("starting")
        status = body(context)
    except BaseException:  # an exception must not reach the parent's frames
        logger.exception("a worker of %s failed", context.pool)
    finally:
        with suppress(Exception):
            logging.shutdown()
        leave_at_once(status)


def _die_before(parent: int) -> None:
    """On Linux, have the kernel signal us when the parent dies, and kill us first when memory is short."""
    if sys.platform != "linux":
        return  # the lifeline reports the death
    with suppress(OSError, ValueError):
        own = Path("/proc/self/oom_score_adj")
        own.write_text(str(min(_OOM_MAX, int(own.read_text()) + _OOM_MORE)))
    hear_of_parents_death(signal.SIGTERM)
    if os.getppid() != parent:  # it died before the request took effect
        os.kill(os.getpid(), signal.SIGTERM)


def hear_of_parents_death(number: signal.Signals) -> None:
    """On Linux, have the kernel send a signal to this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


@dataclass(frozen=True, slots=True)
class Image:
    """A command to execute, its environment and its folder; without a folder, the current one."""

    command: list[str]
    environment: Mapping[str, str]
    folder: str | None

    def execute(self) -> NoReturn:
        """Replace this process's program; raise :exc:`OSError` if the system refuses."""
        if self.folder is not None:
            os.chdir(self.folder)
        os.execve(self.command[0], self.command, self.environment)  # noqa: S606  # a shell is not wanted


def start_program(program: Image, links: Links) -> tuple[int, int]:
    """Start a program in a process group of its own.

    Return its pid and a descriptor. If the system has refused the program, the reason can be read from the descriptor
    after the process has ended.
    """
    refusal_r, refusal_w = os.pipe()
    try:
        os.set_blocking(refusal_r, False)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _be_program(program, links, refusal_w)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    except OSError:
        os.close(refusal_r)
        raise
    finally:
        os.close(refusal_w)
    return pid, refusal_r


def _be_program(program: Image, links: Links, refusal_w: int) -> NoReturn:
    try:
        os.setpgid(0, 0)
        links.close_in_child()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        program.execute()
    except BaseException as error:  # an exception must not reach the parent's frames
        os.write(refusal_w, str(error).encode(errors="backslashreplace"))
    finally:
        os._exit(ExitCode.FAILED)


def execute(program: Image) -> NoReturn:
    """Replace this process by another program; if refused, restore the folder and raise :exc:`OSError`."""
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    try:
        program.execute()
    finally:
        os.fchdir(here)
        os.close(here)


def drain(pid: int) -> None:
    """Ask a child to finish its jobs and exit."""
    os.kill(pid, signal.SIGTERM)


def kill(pid: int) -> None:
    """Kill a child and all processes that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def dump_stacks_of(pid: int) -> None:
    """Make a child write its Python stacks to stderr. The signal kills a child that has no handler yet."""
    os.kill(pid, signal.SIGUSR1)


def dump_stacks_of_stuck(pid: int) -> None:
    """Make a child write its stacks before it is killed, even if its interpreter is stuck. It may die of this."""
    os.kill(pid, STUCK)


def reap(is_ours: Callable[[int], bool]) -> Iterator[Exit]:
    """Collect every dead child, and kill the processes that our children left running.

    Orphans of other processes are collected too: as process 1 of a container we inherit them.
    """
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None:
            return
        if is_ours(info.si_pid):
            kill(info.si_pid)  # its group, while the zombie still holds the number
        _, status, usage = os.wait4(info.si_pid, 0)
        code = os.waitstatus_to_exitcode(status)
        yield Exit(
            pid=info.si_pid,
            status=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            user_s=usage.ru_utime,
            system_s=usage.ru_stime,
            max_rss_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        )


def usage(pid: int) -> Usage:
    """Return the cheap readings of a child's memory."""
    if PROC_IS_THERE:
        stat = read_stat(pid)
        return Usage(stat.rss_bytes, stat.faults) if stat else Usage(0, 0)  # it has just died
    import psutil

    try:
        return Usage(int(psutil.Process(pid).memory_info().rss), None)
    except psutil.Error:
        return Usage(0, None)


def private_bytes(pid: int) -> int:
    if PROC_IS_THERE:
        memory = read_memory(pid)
        return memory.private_bytes if memory else 0
    import psutil

    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0
