"""The command that shows the supervisors of this machine and their workers, as the system sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from flask_backend.cli.output import Column, count_of, echo, echo_json, echo_table, json_option, show_seconds
from flask_backend.system.procfs import PROC_IS_THERE, MemoryUse, read_memory, read_stat, titles, uptime_s
from flask_backend.system.titles import WorkerTitle, is_master, read_worker
from flask_backend.visible import visible


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    title: str
    up_s: float
    rss_bytes: int
    memory: MemoryUse | None  # unset if this user may not read it


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
    def private_bytes(self) -> int | None:
        """The sum of the private memory of its processes; None if one of them cannot be read."""
        memories = self._memories
        return sum(memory.private_bytes for memory in memories) if memories else None

    @property
    def pss_bytes(self) -> int | None:
        memories = self._memories
        return sum(memory.pss_bytes for memory in memories) if memories else None

    @property
    def _memories(self) -> list[MemoryUse]:
        """Return the memory of all its processes; an empty list if one of them cannot be read."""
        processes = [self.process, *(worker.process for worker in self.workers)]
        memories = [process.memory for process in processes if process.memory]
        return memories if len(memories) == len(processes) else []


@click.command()
@json_option
def status(*, as_json: bool) -> None:
    """Show the supervisors on this machine, their workers and memory.

    It shows the processes of all users, and needs neither the app nor the broker. Values that this user may not read
    are blank; root may read all. Private is the memory of one process alone (USS). Shared is memory that other
    processes use too: in a worker, mostly the app's memory at the time of the fork. PSS is the private memory and a
    share of the rest; the PSS of all processes adds up to their total memory.

    Exit code 1 if no supervisor runs.
    """
    if not PROC_IS_THERE:
        raise click.ClickException("status reads /proc, which only Linux has")
    supervisors = _find()
    if not supervisors:
        raise click.ClickException("no supervisor runs here: start one with `flask-backend supervise`")
    if as_json:
        echo_json([_as_dict(supervisor) for supervisor in supervisors])
        return
    for number, supervisor in enumerate(supervisors):
        if number:
            echo()
        _echo(supervisor)


def _find() -> list[_Supervisor]:
    now, all_titles = uptime_s(), dict(titles())
    processes = [_look_at(pid, title, now) for pid, title in all_titles.items() if title.startswith("flask-backend:")]
    found = {process.pid: process for process in processes if process}
    masters = {process.pid: process for process in found.values() if is_master(process.title)}
    # A newly forked child still has its parent's title.
    masters = {pid: master for pid, master in masters.items() if master.parent not in masters}
    parents = {process.parent for process in found.values() if read_worker(process.title)}
    for pid in parents - set(masters):
        title = all_titles.get(pid, "")
        if _is_reloading(title) and (master := _look_at(pid, title, now)):
            masters[pid] = master
    return [_Supervisor(master, _workers_of(master, found.values())) for _, master in sorted(masters.items())]


def _is_reloading(title: str) -> bool:
    """Whether a worker's parent is a supervisor that has lost its title: one that has executed its command to reload.

    During the exec, a process has no command line at all.
    """
    return not title or "supervise" in title.split()[1:]


def _workers_of(master: _Process, processes: Iterable[_Process]) -> list[_Worker]:
    children = [process for process in processes if process.parent == master.pid]
    workers = [_Worker(child, told) for child in children if (told := read_worker(child.title))]
    return sorted(workers, key=lambda worker: (worker.told.queue, worker.process.pid))


def _look_at(pid: int, title: str, now: float) -> _Process | None:
    """Return the facts about a process, unless it has ended."""
    memory, stat = read_memory(pid), read_stat(pid)
    if stat is None:
        return None
    rss_bytes = memory.rss_bytes if memory else stat.rss_bytes
    return _Process(pid, stat.parent, visible(title), now - stat.started, rss_bytes, memory)


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
    memory = process.memory
    return {
        "pid": process.pid,
        "up_s": round(process.up_s, 1),
        "rss_bytes": process.rss_bytes,
        "private_bytes": memory.private_bytes if memory else None,
        "pss_bytes": memory.pss_bytes if memory else None,
        "shared_bytes": memory.shared_bytes if memory else None,
    }


def _echo(supervisor: _Supervisor) -> None:
    master = supervisor.process
    echo(
        f"supervisor {master.pid}, up {show_seconds(master.up_s)}: {count_of(len(supervisor.workers), 'worker')}, "
        f"queues {', '.join(supervisor.queues) or 'none'}"
    )
    columns = [Column("pid", is_number=True), Column("queue", least=12), Column("does", least=12)]
    columns += [Column(title, is_number=True) for title in ("up", "RSS", "private", "shared", "PSS")]
    does = "supervises" if is_master(master.title) else "reloads"
    rows = [[str(master.pid), "", does, show_seconds(master.up_s), *_show_memory(master)]]
    for worker in supervisor.workers:
        of = worker.process
        row = [str(of.pid), worker.told.queue, worker.told.activity, show_seconds(of.up_s), *_show_memory(of)]
        rows.append(row)
    rows.append(["", "", "all", "", "", _show_size(supervisor.private_bytes), "", _show_size(supervisor.pss_bytes)])
    echo_table(columns, rows)


def _show_memory(process: _Process) -> list[str]:
    memory = process.memory
    sizes = (memory.private_bytes, memory.shared_bytes, memory.pss_bytes) if memory else (None, None, None)
    return [_show_size(size) for size in (process.rss_bytes, *sizes)]


def _show_size(size: int | None) -> str:
    return "" if size is None else f"{size / (1 << 20):.1f}M"
