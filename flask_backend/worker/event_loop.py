"""The event loop of a worker: created when a task first needs it, reused by later tasks, closed when the worker ends.

It runs in the thread that runs the tasks, and only while one of them needs it: between jobs it stands still. asyncio is
imported on first use: most apps never need it.
"""

from __future__ import annotations

import importlib
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flask_backend.functions import may_be_async
from flask_backend.system.loggers import get_logger

from . import wording
from .results import finish

if TYPE_CHECKING:
    import asyncio

logger = get_logger("flask_backend.worker")

T = TypeVar("T")

# How long the shutdown waits for background tasks and threads to end.
PATIENCE_S = 5.0
# The same for a loop that was never closed.
LAST_S = 1.0


class _Forked(SystemExit):
    """The coroutine of a task has ended in a process that it forked. asyncio lets SystemExit propagate."""


@dataclass(eq=False, slots=True)
class _Run:
    """An awaitable that runs in the loop, and its outcome."""

    awaitable: Awaitable[Any]
    pid: int = field(default_factory=os.getpid)
    task: asyncio.Task[None] | None = None
    value: Any = None
    error: BaseException | None = None
    due: BaseException | None = None  # the reason to cancel it
    broken_off_by: BaseException | None = None  # the reason for which it is being cancelled

    async def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Await it, and keep its exception from the loop: SystemExit and KeyboardInterrupt would stop that."""
        try:
            self.value = await self.awaitable
        except BaseException as error:
            self.error = error
        if os.getpid() != self.pid:
            self._enter_again(loop)
            raise _Forked  # at once: another turn would read from sockets shared with the parent
        loop.stop()

    def _enter_again(self, loop: asyncio.AbstractEventLoop) -> None:
        """Become the current task in a forked process: Python 3.14 unsets it, and lets only the current task raise."""
        import asyncio

        if self.task is not None and asyncio.current_task(loop) is not self.task:
            asyncio._set_running_loop(loop)  # for implementers of loops  # noqa: SLF001
            asyncio.tasks._enter_task(loop, self.task)  # noqa: SLF001

    def cancel(self) -> None:
        """Cancel it. The loop calls this: a task cancelled before its first step would end without :meth:`watch`."""
        if self.task is not None and self.broken_off_by is None and self.task.cancel(str(self.due)):
            self.broken_off_by = self.due

    def outcome(self) -> Any:
        error, self.error = self.error, None  # its traceback refers to our frames: a cycle would keep their objects
        because, self.broken_off_by, self.due = self.broken_off_by, None, None
        try:
            if because is None:
                because = error
            elif because.__traceback__ is None and isinstance(error, _cancelled_error()):
                because.__traceback__ = error.__traceback__  # it shows where the coroutine was
            elif because.__traceback__ is None:
                because.__cause__ = error
            if because is not None:
                raise because
        finally:
            del error, because
        return self.value


class EventLoop:
    """Runs one awaitable at a time to its end. Its background tasks stay, and go on during the next run."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._parents: asyncio.AbstractEventLoop | None = None  # never touched: it shares its selector with ours
        self._pid = 0
        self._finalizer: weakref.finalize[..., EventLoop] | None = None
        self._runs: dict[str, _Run] = {}  # the current one

    @classmethod
    def prepare(cls) -> None:
        """Import the modules that a loop needs."""
        for module in ("asyncio", "concurrent.futures.thread"):
            importlib.import_module(module)

    @property
    def is_running(self) -> bool:
        return bool(self._runs)

    def run(self, awaitable: Awaitable[T]) -> T:
        """Return the result of ``awaitable``, or raise its exception.

        It runs with the caller's context variables. An exception of a signal handler, or SystemExit in a background
        task, cancels it, and is raised when it has ended. If the loop is already running, in another thread or further
        up the stack, the awaitable gets a new loop.
        """
        run = _Run(awaitable)
        if self._runs.setdefault("now", run) is not run:  # two threads may get here at the same time
            with closing(EventLoop()) as other:
                return other.run(awaitable)
        try:
            self._run(self._usable(), run)
        finally:
            del self._runs["now"]
        return cast("T", run.outcome())

    def _run(self, loop: asyncio.AbstractEventLoop, run: _Run) -> None:
        run.task = loop.create_task(run.watch(loop))
        if run.due is not None:
            loop.call_soon(run.cancel)
        while not run.task.done():  # a task may stop the loop: run it again
            try:
                loop.run_forever()
            except _Forked:
                run.task.exception()  # asyncio logs an exception that is never retrieved
                return
            except BaseException as error:
                if run.due is None:
                    run.due = error
                    loop.call_soon(run.cancel)
                elif not isinstance(error, SystemExit):
                    raise  # a second Ctrl-C

    def _usable(self) -> asyncio.AbstractEventLoop:
        import asyncio

        if self._pid != os.getpid():
            self._parents, self._loop = self._loop, None
        if self._loop is None or self._loop.is_closed():
            self._pid = os.getpid()
            self._loop = asyncio.new_event_loop()
            self._finalizer = weakref.finalize(self, _close, self._loop, self._pid)
        return self._loop

    # -- interruption ----------------------------------------------------------------------------------------

    def runs_code_of_task(self, frame: FrameType | None) -> bool:
        """Whether ``frame`` runs code of the awaitable itself: not of asyncio or a background task."""
        import asyncio

        run = self._runs.get("now")
        if run is None or self._loop is None or asyncio.current_task(self._loop) is not run.task:
            return False
        is_inner = False
        while frame is not None:
            if frame.f_code is _Run.watch.__code__:
                return is_inner
            if frame.f_globals.get("__name__", "").partition(".")[0] == "asyncio":
                return False
            is_inner = True
            frame = frame.f_back
        return False

    def cancel(self, because: BaseException) -> None:
        """Cancel the current run, from a signal handler: :meth:`run` raises ``because`` even if that is swallowed."""
        run, loop = self._runs.get("now"), self._loop
        if run is not None:
            run.due = because
            if loop is not None:  # else it is about to be created
                with suppress(RuntimeError):  # it is closed, and replaced by another
                    loop.call_soon_threadsafe(run.cancel)

    def expect(self, because: BaseException) -> None:
        """Make :meth:`run` raise ``because``, which the coroutine is about to raise, even if it swallows that."""
        if (run := self._runs.get("now")) is not None:
            run.broken_off_by = because

    def wake(self) -> None:
        """Make the loop check for signals, from any thread: a signal just before it sleeps does not wake it."""
        if (loop := self._loop) is not None and self._runs:
            with suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(lambda: None)

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Cancel and await background tasks, and wait for async generators and threads, for at most ``patience_s``."""
        loop = self._loop
        if loop is None or loop.is_closed() or self._runs or self._pid != os.getpid():
            return
        try:
            has_ended = self.run(_shut_down(loop, patience_s))
        except BaseException:  # a background task may raise SystemExit
            logger.exception(wording.LOOP_FAILED)
            has_ended = False
        if has_ended:
            loop.close()
        elif self._finalizer is not None:
            self._finalizer.detach()  # asyncio would warn of tasks that are still running


def _cancelled_error() -> type[BaseException]:
    import asyncio

    return asyncio.CancelledError


def _close(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    """Close the loop of an :class:`EventLoop` that is gone, for example at the end of a test run."""
    if os.getpid() != pid or loop.is_running():  # the loop of the parent process, or of a daemon thread
        return
    import asyncio

    if (pending := asyncio.all_tasks(loop)) and asyncio._get_running_loop() is None:  # noqa: SLF001  # or it raises
        for task in pending:  # asyncio warns of tasks that have not ended
            task.cancel()
        with suppress(SystemExit, KeyboardInterrupt):  # raised by one of them
            loop.run_until_complete(asyncio.wait(pending, timeout=LAST_S))
    loop.close()


async def _shut_down(loop: asyncio.AbstractEventLoop, patience_s: float) -> bool:
    """End everything in the loop; return whether everything has ended."""
    import asyncio

    deadline = loop.time() + patience_s
    stuck = set[asyncio.Task[Any]]()
    if pending := asyncio.all_tasks() - {asyncio.current_task()}:
        logger.warning(wording.LOOP_CANCELS, _names(pending))
        for task in pending:
            task.cancel()
        ended, stuck = await asyncio.wait(pending, timeout=patience_s)
        for task in ended:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error(wording.LOOP_TASK_FAILED, _names([task]), exc_info=error)
    if stuck:
        logger.error(wording.LOOP_TASKS_STUCK, patience_s, _names(stuck))
    for step in (loop.shutdown_asyncgens(), loop.shutdown_default_executor()):
        _, late = await asyncio.wait([loop.create_task(step)], timeout=max(0.0, deadline - loop.time()))
        stuck |= late
    return not stuck


def _names(tasks: Iterable[asyncio.Task[Any]]) -> str:
    coroutines = [(task.get_name(), task.get_coro()) for task in tasks]
    return ", ".join(sorted(f"{name} ({getattr(each, '__qualname__', each)})" for name, each in coroutines))


# -- for callers ---------------------------------------------------------------------------------------------

# The loop of the worker or the test kit that runs the current job.
loop_in_use: ContextVar[EventLoop] = ContextVar("flask_backend.loop_in_use")


def run_here(name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function for the caller and return its result; an asynchronous one runs to its end."""

    def call() -> Any:
        result = function(*args, **kwargs)
        if result is None:
            return None
        return finish(name, function, result, run_in_loop)

    return apart_from_running_loop(call) if may_be_async(function) else call()


@contextmanager
def using_loop(loop: EventLoop) -> Generator[None]:
    token = loop_in_use.set(loop)
    try:
        yield
    finally:
        loop_in_use.reset(token)


def run_in_loop(awaitable: Awaitable[T]) -> T:
    """Run ``awaitable`` in the loop of the worker or test kit if this is its main thread, else in a new loop."""
    in_use = loop_in_use.get(None) if threading.current_thread() is threading.main_thread() else None
    if in_use is not None:
        return in_use.run(awaitable)
    with closing(EventLoop()) as new:
        return new.run(awaitable)


def apart_from_running_loop(function: Callable[..., T], *args: Any) -> T:
    """Call a function where no event loop runs: here, or in a separate thread with the caller's context."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function(*args)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(copy_context().run, function, *args).result()
