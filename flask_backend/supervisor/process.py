"""The only place that forks, kills and waits."""

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

# An import needs a descriptor, of which the loop may have none: what is imported by a call comes first.
for needed in ("array", *([] if PROC_IS_THERE else ["psutil"])):
    importlib.import_module(needed)

logger = get_logger("flask_backend.supervisor")

_PR_SET_PDEATHSIG = 1  # prctl(2)
_OOM_MAX = 1000  # proc(5); each 10 count as a hundredth of the machine's memory
_OOM_MORE = 200


class Lifeline:
    """A pipe to which nobody writes: children see its end when the last writer, the supervisor, is gone."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()
        self._old_ones: list[int] = []  # of children that an earlier image of this process has started

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
    """What connects the supervisor with its children."""

    inbox: Inbox
    lifeline: Lifeline
    loans: Loans
    notifier: Notifier
    descriptors: Descriptors

    def close_in_child(self, *, keep_loan_of: int | None = None) -> None:
        """Close what is the supervisor's, and put back the limit of descriptors that it has raised."""
        self.inbox.close_in_child()
        self.lifeline.close_in_child()
        self.loans.close_in_child(keep=keep_loan_of)
        self.notifier.close_in_child()
        self.descriptors.put_back()


class ChildContext:
    """What a child's body gets: where it belongs, and how to report."""

    def __init__(self, pool: str, row: Row, links: Links, mask: Iterable[int]) -> None:
        self.pool = pool
        self.lifeline = links.lifeline.read_end
        self._links = links
        self._mask = mask
        self._row = row
        # What a body says for every job goes to the row without a detour.
        self.live, self.begin, self.run, self.end = row.live, row.begin, row.run, row.end
        self.was_told_to_drain, self.heard_drain = row.was_told_to_drain, row.heard_drain

    def accept_signals(self) -> None:
        """Let signals through, once the body has installed its handlers: one that came before is not lost."""
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
    """Fork a child that runs ``body`` and exits with what it returns; return its pid.

    Of what other children have lent it keeps the loan of the child ``keep_loan_of`` alone.

    Signals are blocked across the fork, and stay so in the child until it has handlers of its own: with the
    parent's, an early TERM would be lost.
    """
    flush()
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(parent, body, ChildContext(pool, row, links, mask), links, keep_loan_of)
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # here too, so that the group exists when we want to kill it
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _be_child(parent: int, body: Body, context: ChildContext, links: Links, keep_loan_of: int | None) -> None:
    """Never returns: what is on the stack below belongs to the parent."""
    status: int = ExitCode.FAILED
    try:
        disown()
        os.setpgid(0, 0)  # the terminal's Ctrl-C is for the supervisor alone
        links.close_in_child(keep_loan_of=keep_loan_of)
        _die_before(parent)
        for number in (signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(
                number, signal.SIG_IGN
            )  # in a group of its own it may not use the terminal, but must not stop
        dump_on_signal()
        gc.enable()
        context.show("starting")
        status = body(context)
    except BaseException:  # nothing may pass into the parent's frames
        logger.exception("a worker of %s failed", context.pool)
    finally:
        with suppress(Exception):
            logging.shutdown()
        leave_at_once(status)


def _die_before(parent: int) -> None:
    """Have the kernel tell us of the parent's death, and take us first when memory is short, where it can."""
    if sys.platform != "linux":
        return  # the lifeline tells of the death
    with suppress(OSError, ValueError):
        own = Path("/proc/self/oom_score_adj")
        own.write_text(str(min(_OOM_MAX, int(own.read_text()) + _OOM_MORE)))
    hear_of_parents_death(signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked to be told
        os.kill(os.getpid(), signal.SIGTERM)


def hear_of_parents_death(number: signal.Signals) -> None:
    """Have the kernel send a signal to this process when its parent dies, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


@dataclass(frozen=True, slots=True)
class Image:
    """What to execute, and in which folder; None for the one of now."""

    command: list[str]
    environment: Mapping[str, str]
    folder: str | None

    def execute(self) -> NoReturn:
        """Replace this process's program; raise :exc:`OSError` if the system refuses."""
        if self.folder is not None:
            os.chdir(self.folder)
        os.execve(self.command[0], self.command, self.environment)  # noqa: S606  # no shell is wanted


def start_program(program: Image, links: Links) -> tuple[int, int]:
    """Start a program in a process group of its own.

    Returns its pid, and a descriptor that has the reason to be read when the process has ended, if the system has
    refused the program.
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
    except BaseException as error:  # nothing may pass into the parent's frames
        os.write(refusal_w, str(error).encode(errors="backslashreplace"))
    finally:
        os._exit(ExitCode.FAILED)


def execute(program: Image) -> NoReturn:
    """Go on as another program; if the system refuses, raise :exc:`OSError` in the folder of before."""
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    try:
        program.execute()
    finally:
        os.fchdir(here)
        os.close(here)


def drain(pid: int) -> None:
    """Ask a child to finish what it holds and to exit."""
    os.kill(pid, signal.SIGTERM)


def kill(pid: int) -> None:
    """End a child and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def dump_stacks_of(pid: int) -> None:
    """Have a child write its Python stacks to stderr; one that has no handler yet would die of the signal."""
    os.kill(pid, signal.SIGUSR1)


def dump_stacks_of_stuck(pid: int) -> None:
    """Have a child that is to be killed write its stacks, even if its interpreter is stuck: it may die of that."""
    os.kill(pid, STUCK)


def reap(is_ours: Callable[[int], bool]) -> Iterator[Exit]:
    """Collect every dead child, and kill whatever ours left running.

    Strangers are collected too: as process 1 of a container we inherit them.
    """
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None:
            return
        if is_ours(info.si_pid):
            kill(info.si_pid)  # its group, while the dead still holds the number
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
    """Return what is cheap to ask of a child's memory."""
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
