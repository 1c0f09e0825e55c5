"""The command that shows the supervisors of this machine and their workers: as the system sees them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from flask_backend.procfs import PROC_IS_THERE, Memory, read_memory, read_stat, titles_of, uptime_s
from flask_backend.titles import WorkerTitle, is_master, read_worker

from .output import Column, count_of, echo_json, echo_table, json_option, show_seconds


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    title: str
    up_s: float
    memory: Memory


@dataclass(frozen=True, slots=True)
class _Worker:
    process: _Process
    told: WorkerTitle


@dataclass(frozen=True, slots=True)
class _Supervisor:
    process: _Process
    workers: Sequence[_Worker]

    @property
    def queues(self) -> list[str]:
        return sorted({worker.told.queue for worker in self.workers})

    @property
    def private_bytes(self) -> int:
        """The sum of what each of its processes has alone."""
        return sum(memory.private_bytes for memory in self._memories)

    @property
    def pss_bytes(self) -> int:
        return sum(memory.pss_bytes for memory in self._memories)

    @property
    def _memories(self) -> list[Memory]:
        return [self.process.memory, *(worker.process.memory for worker in self.workers)]


@click.command()
@json_option
def status(*, as_json: bool) -> None:
    """Show the supervisors here, their workers and memory.

    Those of this user, on this machine; it needs neither the app nor the broker. Private is what a process has alone
    (USS); shared is what others use too, of a worker mostly what the app had in memory when it was forked. PSS is the
    private memory and a share of the rest, so that the PSS of all is what they take together.

    Exit code 1 if none runs.
    """
    if not PROC_IS_THERE:
        raise click.ClickException("status reads /proc, which only Linux has")
    supervisors = _find()
    if not supervisors:
        raise click.ClickException("no supervisor of this user runs here: start one with `flask-backend supervise`")
    if as_json:
        echo_json([_as_dict(supervisor) for supervisor in supervisors])
        return
    for number, supervisor in enumerate(supervisors):
        if number:
            click.echo()
        _echo(supervisor)


def _find() -> list[_Supervisor]:
    now = uptime_s()
    processes = [
        _look_at(pid, title, now) for pid, title in titles_of(os.getuid()) if title.startswith("flask-backend:")
    ]
    found = {process.pid: process for process in processes if process}
    masters = [process for process in found.values() if is_master(process.title)]
    # A child that was forked a moment ago still has its parent's title.
    masters = [master for master in masters if master.parent not in {other.pid for other in masters}]
    return [_Supervisor(master, _workers_of(master, found.values())) for master in masters]


def _workers_of(master: _Process, processes: Iterable[_Process]) -> list[_Worker]:
    children = [process for process in processes if process.parent == master.pid]
    workers = [_Worker(child, told) for child in children if (told := read_worker(child.title))]
    return sorted(workers, key=lambda worker: (worker.told.queue, worker.process.pid))


def _look_at(pid: int, title: str, now: float) -> _Process | None:
    """Return what can be known of a process; None if it has ended meanwhile."""
    stat, memory = read_stat(pid), read_memory(pid)
    return _Process(pid, stat.parent, title, now - stat.started, memory) if stat and memory else None


def _as_dict(supervisor: _Supervisor) -> dict[str, Any]:
    return {
        **_process_as_dict(supervisor.process),
        "queues": supervisor.queues,
        "workers": [
            {"queue": worker.told.queue, "activity": worker.told.activity, **_process_as_dict(worker.process)}
            for worker in supervisor.workers
        ],
        "total_private_bytes": supervisor.private_bytes,
        "total_pss_bytes": supervisor.pss_bytes,
    }


def _process_as_dict(process: _Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "up_s": round(process.up_s, 1),
        **asdict(process.memory),
        "shared_bytes": process.memory.shared_bytes,
    }


def _echo(supervisor: _Supervisor) -> None:
    master = supervisor.process
    click.echo(
        f"supervisor {master.pid}, up {show_seconds(master.up_s)}: {count_of(len(supervisor.workers), 'worker')}, "
        f"queues {', '.join(supervisor.queues) or 'none'}"
    )
    columns = [Column("pid", is_number=True), Column("queue", least=12), Column("does", least=12)]
    columns += [Column(title, is_number=True) for title in ("up", "RSS", "private", "shared", "PSS")]
    rows = [[str(master.pid), "", "supervises", show_seconds(master.up_s), *_show_memory(master.memory)]]
    for worker in supervisor.workers:
        of = worker.process
        row = [str(of.pid), worker.told.queue, worker.told.activity, show_seconds(of.up_s), *_show_memory(of.memory)]
        rows.append(row)
    rows.append(["", "", "all", "", "", _show_size(supervisor.private_bytes), "", _show_size(supervisor.pss_bytes)])
    echo_table(columns, rows)


def _show_memory(memory: Memory) -> list[str]:
    return [
        _show_size(size) for size in (memory.rss_bytes, memory.private_bytes, memory.shared_bytes, memory.pss_bytes)
    ]


def _show_size(size: int) -> str:
    return f"{size / (1 << 20):.1f}M"
