"""The command line: parse, call, print. ``flask-backend``, and the same commands as ``flask backend``."""

from __future__ import annotations

import dataclasses
import faulthandler
import gc
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

import click

from .exits import ExitCode
from .machine import available_cpus, available_memory

if TYPE_CHECKING:
    from flask import Flask

    from .extension import Backend
    from .supervisor import ChildContext, Pool, Work
    from .worker import Limits

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)


# -- parameters ----------------------------------------------------------------------------------------------


def parse_size(value: str) -> int:
    """Read bytes, as ``200M`` or ``1.5G``."""
    match = SIZE.fullmatch(value.strip())
    size = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size <= 0:
        raise click.BadParameter(f"{value!r} is no size: expected a number with K, M, G or T, as 200M or 1.5G")
    return size


def parse_size_or_auto(value: str) -> int | Literal["auto"]:
    return "auto" if value == "auto" else parse_size(value)


def parse_queue(value: str) -> tuple[str, int | None]:
    """Read a queue with a number of workers of its own, ``NAME=8``, or without, ``NAME``."""
    name, equals, count = value.partition("=")
    if equals and not (count.isdecimal() and int(count) > 0):
        raise click.BadParameter(f"{value!r}: expected a number of workers from 1 after the =, got {count!r}")
    return name, int(count) if equals else None


def time_limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    limit = click.option(
        "--time-limit",
        type=click.FloatRange(min=0, min_open=True),
        envvar="BACKEND_TIME_LIMIT",
        show_envvar=True,
        metavar="SECONDS",
        help="How long a task may take that has no limit of its own; TaskTimeout is then raised inside it.",
    )
    grace = click.option(
        "--kill-grace",
        type=click.FloatRange(min=0, min_open=True),
        default=5.0,
        envvar="BACKEND_KILL_GRACE",
        show_envvar=True,
        show_default=True,
        metavar="SECONDS",
        help="How long after its time limit a task that goes on is killed, with its worker.",
    )
    return limit(grace(function))


def drain_timeout_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--drain-timeout",
        type=click.FloatRange(min=0),
        default=25.0,
        envvar="BACKEND_DRAIN_TIMEOUT",
        show_envvar=True,
        show_default=True,
        metavar="SECONDS",
        help="How long running tasks may go on after TERM, before they are given back to the queue.",
    )(function)


# -- the app -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedApp:
    app: Flask
    backend: Backend


class AppLoadError(click.ClickException):
    """The app cannot be used as it is; restarting will not help."""

    exit_code = ExitCode.CONFIG


def load_app(ctx: click.Context) -> LoadedApp:
    """Load the app as Flask does; raise :exc:`AppLoadError` with what the user's own code had to say."""
    from flask.cli import NoAppException, ScriptInfo

    from .extension import EXTENSION_KEY, Backend
    from .logs import configure

    info = ctx.find_object(ScriptInfo)
    if info is None:  # our own command line, not Flask's
        info = ScriptInfo(app_import_path=ctx.find_root().params.get("app") or os.environ.get("FLASK_APP"))
    try:
        app = info.load_app()
    except NoAppException as error:
        raise AppLoadError(error.format_message()) from error
    except StopWhileLoading:
        raise
    except BaseException as error:  # SystemExit of the app's own, too: it cannot be loaded
        raise AppLoadError(f"the app cannot be imported.\n\n{_users_traceback(error)}") from error
    configure(app)
    backend = app.extensions.get(EXTENSION_KEY)
    if not isinstance(backend, Backend):
        raise AppLoadError(f"app {app.name!r} has no Backend: use Backend(app), or backend.init_app(app)")
    return LoadedApp(app, backend)


def check_queue(loaded: LoadedApp, queue: str) -> None:
    queues = loaded.backend.queues
    if queue not in queues:
        known = "\n".join(f"  {name}" for name in sorted(queues)) or "  none"
        raise AppLoadError(
            f"nothing in app {loaded.app.name!r} is registered for queue {queue!r}. Its queues are:\n{known}"
        )


def _users_traceback(error: BaseException) -> str:
    """Format a traceback that begins in the user's code, not in what imports it."""
    tb = error.__traceback__
    while tb is not None and _is_machinery(tb):
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(error), error, tb)).rstrip()


def _is_machinery(tb: TracebackType) -> bool:
    filename = tb.tb_frame.f_code.co_filename
    module = tb.tb_frame.f_globals.get("__name__", "")
    return filename.startswith("<frozen") or module in {__name__, "flask.cli"}


class StopWhileLoading(SystemExit):  # an exit, not an error
    """TERM or INT came while the app was being imported."""


class StopSignalsWhileLoading:
    """TERM and INT end the process with 0 while there is nothing to drain; process 1 would ignore them otherwise.

    After a reload there is: then they wait until the app is loaded.
    """

    def __init__(self, *, may_exit: bool = True) -> None:
        self._came = False
        self._may_exit = may_exit
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])  # after a reload all are blocked

    def exit_if_one_came(self) -> None:
        """Exit now if code of the app, or of what it imports, has swallowed the exit that a signal raised in it."""
        if self._came and self._may_exit:
            sys.exit(ExitCode.OK)

    def pass_on(self) -> None:
        """Have a signal that came after a reload handled by those who come next."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        if self._came:
            os.kill(os.getpid(), signal.SIGTERM)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._may_exit:
            raise StopWhileLoading(ExitCode.OK)


# -- commands ------------------------------------------------------------------------------------------------


@click.group()
def commands() -> None:
    """Run and check the workers of Flask-Backend."""


@commands.command()
@click.option(
    "--queue",
    "-q",
    "queues",
    type=parse_queue,
    metavar="NAME[=WORKERS]",
    multiple=True,
    envvar="BACKEND_QUEUES",
    show_envvar=True,
    help="A queue to serve, with its own number of workers or without. May be repeated. Default: all the app has.",
)
@click.option(
    "--workers",
    "-w",
    type=click.IntRange(min=1),
    envvar="BACKEND_WORKERS",
    show_envvar=True,
    help="Workers for each queue.  [default: the CPUs this process may use]",
)
@click.option(
    "--max-memory",
    type=parse_size_or_auto,
    metavar="SIZE|auto",
    envvar="BACKEND_MAX_MEMORY",
    show_envvar=True,
    help="Recycle a worker, after its task, whose private memory is larger: 200M, 1.5G; auto for an even share "
    "of nine tenths of what the control group, or the machine, has beyond the app itself.",
)
@click.option(
    "--max-memory-hard",
    type=parse_size,
    metavar="SIZE",
    envvar="BACKEND_MAX_MEMORY_HARD",
    show_envvar=True,
    help="Kill a worker, whatever it does, whose private memory is larger.",
)
@click.option(
    "--max-tasks",
    type=click.IntRange(min=1),
    envvar="BACKEND_MAX_TASKS",
    show_envvar=True,
    help="Recycle a worker after so many tasks.",
)
@time_limit_options
@click.option(
    "--boot-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    envvar="BACKEND_BOOT_TIMEOUT",
    show_envvar=True,
    show_default=True,
    metavar="SECONDS",
    help="Kill a worker whose before_first_task hooks take longer.",
)
@drain_timeout_option
@click.pass_context
def supervise(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context,
    queues: tuple[tuple[str, int | None], ...],
    workers: int | None,
    max_memory: int | Literal["auto"] | None,
    max_memory_hard: int | None,
    max_tasks: int | None,
    time_limit: float | None,
    kill_grace: float,
    boot_timeout: float,
    drain_timeout: float,
) -> None:
    """Import the app once, fork workers for each queue, and keep them running.

    TERM or INT drains: no new tasks, running ones get the drain timeout, then are given back. A second one, or QUIT,
    gives back at once. HUP reloads the app, if its new code works. TTIN and TTOU add and remove a worker for each
    queue; USR1 prints every Python stack.

    Exit codes: 0 stopped as asked; 1 failed; 2 wrong usage; 3 the app cannot be loaded or its workers cannot start;
    4 stopped as asked, but some tasks were given back unfinished; 5 gave up, for the workers kept dying.
    """
    from .supervisor import Handover, Notifier, Options, Supervisor
    from .worker import Limits

    if is_only_to_check():
        loaded = load_app(ctx)
        try_hooks(loaded, plan_pools(loaded, queues, workers or available_cpus()))
        return
    handover = Handover.take()
    signals = StopSignalsWhileLoading(may_exit=handover is None)
    notifier = Notifier(handover.notify_address if handover else None)
    # What is imported lives as long as the process: not to be looked at by any collector, whose marks would
    # unshare the pages of every worker.
    gc.disable()
    loaded = load_app(ctx)
    signals.exit_if_one_came()
    pools = plan_pools(loaded, queues, workers or available_cpus())
    warn_of_threads()
    options = Options(
        drain_timeout_s=drain_timeout,
        boot_timeout_s=boot_timeout,
        max_memory_bytes=share_of_memory(pools) if max_memory == "auto" else max_memory,
        max_memory_hard_bytes=max_memory_hard,
    )
    limits = Limits(drain_timeout, time_limit_s=time_limit, kill_grace_s=kill_grace, max_tasks=max_tasks)
    try:
        supervisor = Supervisor(pools, make_work(loaded, pools, limits), options, notifier, handover)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    gc.freeze()
    gc.enable()
    signals.pass_on()
    sys.exit(supervisor.run())


def make_work(loaded: LoadedApp, pools: list[Pool], limits: Limits) -> Work:
    """Tell the supervisor, which knows neither Flask nor Beanstalkd, what its children do."""
    from . import postmortem
    from .ending import Ending
    from .supervisor import SETTLED, SETTLED_FOR_GOOD, Work
    from .worker import Worker

    def work(context: ChildContext) -> int:
        own_limits = dataclasses.replace(limits, lifeline=context.lifeline)
        return Worker(loaded.app, loaded.backend, context.pool, context, own_limits).run()

    def settle(fd: int, job_id: int, crashes: int, story: str) -> int:
        settings = loaded.backend.settings_of(loaded.app)
        match postmortem.settle(settings, fd, job_id, crashes=crashes, story=story):
            case Ending.RETRIED:
                return SETTLED
            case Ending.BURIED:
                return SETTLED_FOR_GOOD
            case _:
                return ExitCode.OK

    return Work(work, {pool.name: loaded.backend.queues[pool.name].names for pool in pools}, settle)


def is_only_to_check() -> bool:
    """Say whether a running supervisor has started this process to try whether it could take over."""
    from .supervisor import HandoverError, is_check

    try:
        return is_check()
    except HandoverError as error:
        raise AppLoadError(str(error)) from error


def try_hooks(loaded: LoadedApp, pools: list[Pool]) -> None:
    """Run the hooks of all queues, as their workers would."""
    from .execution import run_hooks

    for pool in pools:
        try:
            run_hooks(loaded.app, loaded.backend.queues[pool.name])
        except BaseException as error:  # whatever it raises, SystemExit too: no worker could start
            raise AppLoadError(f"a hook of {pool.name} failed.\n\n{_users_traceback(error)}") from error


def plan_pools(loaded: LoadedApp, queues: tuple[tuple[str, int | None], ...], workers: int) -> list[Pool]:
    from .supervisor import Pool

    wanted = queues or tuple((name, None) for name in loaded.backend.queues)
    if not wanted:
        raise AppLoadError(f"app {loaded.app.name!r} registers no task and no receiver")
    pools = [Pool(name, count or workers) for name, count in wanted]
    for pool in pools:
        check_queue(loaded, pool.name)
    if len({pool.name for pool in pools}) < len(pools):
        raise click.UsageError("a queue is named twice: say each once, as --queue NAME=WORKERS")
    return pools


def share_of_memory(pools: list[Pool]) -> int:
    """Return the private memory that each worker may have, for all of them to fit beside what they share."""
    import psutil

    shared = psutil.Process().memory_info().rss
    return max(1, int(available_memory() * 0.9) - shared) // sum(pool.size for pool in pools)


def warn_of_threads() -> None:
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        click.echo(
            f"Warning: importing the app has started threads ({', '.join(others)}); they do not run in the workers, "
            "and what they hold locked stays locked there. Start them in a before_first_task hook.",
            err=True,
        )


@commands.command()
@click.argument("queue")
@time_limit_options
@drain_timeout_option
@click.pass_context
def worker(ctx: click.Context, queue: str, time_limit: float | None, kill_grace: float, drain_timeout: float) -> None:
    """Run one worker of QUEUE in the foreground, without a supervisor.

    TERM or INT finishes the running task and exits; a second one, or QUIT, gives it back and exits at once. USR1 prints
    the Python stacks.
    """
    signals = StopSignalsWhileLoading()
    loaded = load_app(ctx)
    signals.exit_if_one_came()
    check_queue(loaded, queue)

    from .host import Foreground
    from .worker import Limits, Worker

    faulthandler.register(signal.SIGUSR1)
    limits = Limits(drain_timeout, time_limit_s=time_limit, kill_grace_s=kill_grace)
    sys.exit(Worker(loaded.app, loaded.backend, queue, Foreground(queue), limits).run())


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """Load the app, run nothing, and say what was found. Exit code 3 if the app cannot be loaded."""
    loaded = load_app(ctx)
    found = {
        "app": loaded.app.name,
        "broker": str(loaded.backend.settings_of(loaded.app).address),
        "queues": [
            {
                "queue": handlers.queue,
                "tasks": sorted(handlers.tasks),
                "receiver": handlers.receiver.name if handlers.receiver else None,
                "before_first_task": [hook.__name__ for hook in handlers.hooks],
            }
            for handlers in loaded.backend.queues.values()
        ],
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"app:    {found['app']}\nbroker: {found['broker']}")
    for handlers in loaded.backend.queues.values():
        click.echo(f"queue:  {handlers.queue}")
        for name in sorted(handlers.tasks):
            click.echo(f"  task {name}")
        if handlers.receiver:
            click.echo(f"  receiver {handlers.receiver.name}")
        for hook in handlers.hooks:
            click.echo(f"  before first task {hook.__name__}")
    if not loaded.backend.queues:
        click.echo("no tasks and no receivers")


@click.group(commands=commands.commands, help=commands.help)
@click.option(
    "--app",
    "-A",
    envvar="FLASK_APP",
    show_envvar=True,
    help="The Flask app or factory, as in `flask --app`: MODULE, MODULE:NAME, FILE. Default: app.py or wsgi.py.",
)
@click.version_option(package_name="flask-backend")
def main(app: str | None) -> None:  # noqa: ARG001  # load_app asks the context for it
    load_dotenv_files()


def load_dotenv_files() -> None:
    """Read .env and .flaskenv as Flask does, where there are any: options may have their values from there."""
    here = Path.cwd()
    if any((folder / name).is_file() for folder in (here, *here.parents) for name in (".env", ".flaskenv")):
        from flask.cli import load_dotenv

        load_dotenv()
