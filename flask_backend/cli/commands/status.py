"""The command that shows the supervisors of this machine, as their status pages and the system show them."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from flask_backend.cli.output import (
    Column,
    echo,
    echo_json,
    echo_table,
    json_option,
    show_duration,
    show_seconds,
    show_size,
    terminal_width,
    wrapped,
)
from flask_backend.cli.summary import headline, why_frozen
from flask_backend.operations.records import scheduler_as_dict, supervisor_as_dict
from flask_backend.operations.supervisors import Process, Queue, Supervisor, age_s, find
from flask_backend.system.procfs import PROC_IS_THERE
from flask_backend.visible import listed, visible

NO_SUPERVISOR = "no supervisor runs here: start one with `flask-backend supervise`"
# The text shows only the last deaths, JSON all that the page has.
SHOWN_DEATHS = 3
# The supervisor takes a turn at least each second: to look more often would show the same.
WATCH_S = 1.0


@click.command()
@json_option
@click.option("--pid", type=click.IntRange(min=1), help="The supervisor. Default: all.")
@click.option("--watch", is_flag=True, help="Show it again each second, until Ctrl-C.")
def status(*, as_json: bool, pid: int | None, watch: bool) -> None:
    """Show the supervisors on this machine, their workers, tasks and memory.

    It reads the status page of each supervisor, and asks neither the supervisor nor the app nor the broker. Values that
    this user may not read are blank; root may read all. Counts are those since the supervisor's start; of a worker,
    since its own. Private is the memory of one process alone (USS). Shared is memory that other processes use too: in a
    worker, mostly the app's memory at the time of the fork. PSS is the private memory and a share of the rest; the PSS
    of all processes adds up to their total memory.

    Exit code 1 if no supervisor runs, or not that of --pid.
    """
    if not PROC_IS_THERE:
        raise click.ClickException("status reads /proc, which only Linux has")
    nothing = NO_SUPERVISOR if pid is None else f"no supervisor with the pid {pid} runs here"
    if not watch:
        if not _show(pid, as_json=as_json):
            raise click.ClickException(nothing)
        return
    try:
        while True:
            if sys.stdout.isatty():
                click.clear()
            if not _show(pid, as_json=as_json) and not as_json:
                echo(nothing)
            sys.stdout.flush()
            time.sleep(WATCH_S)
            if not sys.stdout.isatty() and not as_json:
                echo()
    except KeyboardInterrupt:
        return


def _show(pid: int | None, *, as_json: bool) -> bool:
    """Print all supervisors, or only one; return whether there is one."""
    supervisors = [each for each in find() if pid in (None, each.process.pid)]
    if as_json and supervisors:
        echo_json([supervisor_as_dict(supervisor) for supervisor in supervisors])
    elif supervisors:
        for number, supervisor in enumerate(supervisors):
            if number:
                echo()
            _echo(supervisor)
    return bool(supervisors)


# -- text ------------------------------------------------------------------------------------------------------


def _echo(supervisor: Supervisor) -> None:
    echo(headline(supervisor))
    if why := why_frozen(supervisor.found):
        echo(why, fg="red")
    if reload := supervisor.facts.get("reload"):
        style: dict[str, Any] = {"fg": "red"} if reload["has_failed"] else {}
        _echo_sentence(f"last reload, {show_seconds(age_s(reload['at']))} ago: {reload['outcome']}", **style)
    _echo_queues(supervisor)
    _echo_scheduler(supervisor)
    _echo_workers(supervisor)
    _echo_tasks(supervisor)
    for death in supervisor.facts.get("deaths", [])[-SHOWN_DEATHS:]:
        _echo_sentence(f"{show_seconds(age_s(death['at']))} ago ({death['reason']}): {death['description']}")


def _echo_queues(supervisor: Supervisor) -> None:
    if not supervisor.found:
        return
    columns = [Column("queue", least=12, keeps_end=True)]
    columns += [Column(title, is_number=True) for title in ("wanted", "ready", "no broker", "busy")]
    columns.append(Column("exits", least=24))
    rows = [
        [
            queue.name,
            _show_wanted(queue),
            *(f"{number:,}" for number in (queue.ready, queue.ready - queue.serving, queue.busy)),
            ", ".join(f"{count:,} {reason}" for reason, count in queue.exits.items()) or "none",
        ]
        for queue in supervisor.queues
    ]
    echo_table(columns, rows, [{"fg": "red"} if queue.serving == 0 else {} for queue in supervisor.queues])


def _echo_scheduler(supervisor: Supervisor) -> None:
    if scheduler := scheduler_as_dict(supervisor.facts):
        pid = scheduler["pid"]
        what = f"process {pid} schedules the periodic tasks" if pid else "no process schedules the periodic tasks"
        _echo_sentence(f"{what} of {listed(scheduler['queues'])}", **({} if pid else {"fg": "red"}))


def _show_wanted(queue: Queue) -> str:
    bounds = "" if queue.minimum == queue.maximum else f" ({queue.minimum}..{queue.maximum})"
    return f"{queue.wanted:,}{bounds}"


def _echo_workers(supervisor: Supervisor) -> None:
    master = supervisor.process
    columns = [
        Column("pid", is_number=True),
        Column("queue", least=12, keeps_end=True),
        Column("does", least=12, keeps_end=True),
    ]
    columns += [Column(title, is_number=True) for title in ("up", "done", "failed", "private", "shared", "PSS")]
    does = "reloads" if supervisor.state == "reloading" else "supervises"
    rows = [[str(master.pid), "", does, show_seconds(master.up_s), "", "", *_show_memory(master)]]
    for worker in supervisor.workers:
        of = worker.process
        name = f"old code, {worker.activity}" if worker.is_old else worker.activity
        row = [
            str(of.pid),
            worker.queue,
            name,
            show_seconds(of.up_s),
            _show_number(worker.done),
            _show_number(worker.failed),
        ]
        rows.append([*row, *_show_memory(of)])
    sums = [show_size(supervisor.private_bytes), "", show_size(supervisor.pss_bytes)]
    rows.append(["", "", "all", "", "", "", *sums])
    echo_table(columns, rows)


def _echo_tasks(supervisor: Supervisor) -> None:
    columns = [Column("queue", least=12, keeps_end=True), Column("task", least=12)]
    tasks = [counts for queue in supervisor.queues for counts in queue.tasks.values()]
    names = ["done", "failed", "retried", "buried", "crashed"]
    names += ["expired"] if any(counts.expired for counts in tasks) else []
    columns += [Column(title, is_number=True) for title in (*names, "mean", "wait")]
    rows = [
        [
            queue.name,
            name,
            *(f"{getattr(counts, title):,}" for title in names),
            show_duration(counts.mean_s),
            show_duration(counts.mean_wait_s),
        ]
        for queue in supervisor.queues
        for name, counts in queue.tasks.items()
    ]
    if rows:
        echo_table(columns, rows)


def _show_memory(process: Process) -> list[str]:
    memory = process.memory
    sizes = (memory.private_bytes, memory.shared_bytes, memory.pss_bytes) if memory else (None, None, None)
    return [show_size(size) for size in sizes]


def _show_number(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _echo_sentence(text: str, **style: Any) -> None:
    """Print a sentence in as many lines of the terminal as it needs."""
    echo(wrapped(visible(text), terminal_width(), "  "), **style)
