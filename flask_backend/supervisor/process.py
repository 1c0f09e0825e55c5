"""The only module that forks, kills and waits."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from flask_backend.deaths import Exit
from flask_backend.system.exits import ExitCode, disown, leave_at_once
from flask_backend.system.loggers import get_logger
from flask_backend.system.stacks import STUCK, dump_on_signal
from flask_backend.system.streams import STDERR, flush
from flask_backend.system.titles import show_master

from . import wording
from .image import Image
from .links import Links
from .memory import Usage
from .readings import private_bytes, usage

logger = get_logger("flask_backend.supervisor")

_PR_SET_PDEATHSIG = 1  # prctl(2)
_OOM_MAX = 1000  # proc(5); each 10 count as a hundredth of the machine's memory
_OOM_MORE = 200


AcceptSignals = Callable[[], None]
# The life of a child: it may unblock its signals by the argument, and returns its exit code.
Main = Callable[[AcceptSignals], int]


class Processes:
    """What the supervisor does to processes, and reads of them. Tests of its decisions pass another one."""

    def spawn(self, name: str, main: Main, links: Links, *, keep_loan_of: int | None = None) -> int:
        """Fork a child that runs ``main`` and exits with the code that it returns; return its pid.

        ``name`` is its name in the log if ``main`` raises. Of the sockets that other children have lent, it keeps only
        that of the child ``keep_loan_of``.

        Signals are blocked across the fork, and stay blocked in the child until it has its own handlers: the parent's
        handlers would lose an early TERM. Those that arrive until then are pending, not lost.
        """
        flush()
        parent = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

        def accept_signals() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        try:
            pid = os.fork()
            if pid == 0:
                _be_child(parent, name, lambda: main(accept_signals), links, keep_loan_of)
            with suppress(PermissionError, ProcessLookupError):
                os.setpgid(pid, pid)  # in the parent too, so that the group exists before a kill
            return pid
        finally:
            accept_signals()

    def start_program(self, program: Image, links: Links, stderr: int) -> tuple[int, int]:
        """Start a program in a process group of its own, with the descriptor ``stderr`` as its standard error.

        Return its pid and a descriptor. If the system has refused the program, the reason can be read from the
        descriptor after the process has ended.
        """
        refusal_r, refusal_w = os.pipe()
        try:
            os.set_blocking(refusal_r, False)
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                pid = os.fork()
                if pid == 0:
                    _be_program(program, links, stderr, refusal_w)
                with suppress(PermissionError, ProcessLookupError):
                    os.setpgid(pid, pid)  # in the parent too, so that the group exists before a kill
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except OSError:
            os.close(refusal_r)
            raise
        finally:
            os.close(refusal_w)
        return pid, refusal_r

    def drain(self, pid: int) -> None:
        """Ask a child to finish its jobs and exit."""
        os.kill(pid, signal.SIGTERM)

    def kill(self, pid: int) -> None:
        """Kill a child and all processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def dump_stacks_of(self, pid: int) -> None:
        """Make a child write its Python stacks to stderr. The signal kills a child that has no handler yet."""
        os.kill(pid, signal.SIGUSR1)

    def dump_stacks_of_stuck(self, pid: int) -> None:
        """Make a child write its stacks before it is killed, even if its interpreter is stuck. It may die of this."""
        os.kill(pid, STUCK)

    def reap(self, is_ours: Callable[[int], bool]) -> Iterator[Exit]:
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
                self.kill(info.si_pid)  # its group, while the zombie still holds the number
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

    def usage(self, pid: int) -> Usage:
        """Return the cheap readings of a process's memory."""
        return usage(pid)

    def private_bytes(self, pid: int) -> int:
        return private_bytes(pid)

    def show_plan(self, pools: int, children: int) -> None:
        """Show the plan in the title of this process."""
        show_master(pools, children)


def _be_child(parent: int, name: str, live: Callable[[], int], links: Links, keep_loan_of: int | None) -> None:
    """Run the child. This never returns: the stack below belongs to the parent."""
    status: int = ExitCode.FAILED
    try:
        disown()
        os.setpgid(0, 0)  # the terminal's Ctrl-C is for the supervisor alone
        links.close_in_child(keep_loan_of=keep_loan_of)
        _die_before(parent)
        for number in (signal.SIGTTIN, signal.SIGTTOU):
            # Outside the terminal's group, terminal access must not stop the child.
            signal.signal(number, signal.SIG_IGN)
        dump_on_signal()
        gc.enable()
        status = live()
    except BaseException:  # an exception must not reach the parent's frames
        logger.exception(wording.FAILED, name)
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


def _be_program(program: Image, links: Links, stderr: int, refusal_w: int) -> NoReturn:
    try:
        os.setpgid(0, 0)
        links.close_in_child()
        os.dup2(stderr, STDERR)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        program.execute()
    except BaseException as error:  # an exception must not reach the parent's frames
        os.write(refusal_w, str(error).encode(errors="backslashreplace"))
    finally:
        os._exit(ExitCode.FAILED)
