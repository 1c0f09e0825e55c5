"""Jobs, queues and supervisors as dictionaries, for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flask_backend.broker.stats import JobRecord, Queue

    from . import supervisors
    from .console import Rates
    from .supervisors import Counts, Process, Supervisor, Worker


def attempts_made(record: JobRecord) -> int:
    """Return how often a job was tried, including a running attempt."""
    return record.attempts.number - (record.state != "reserved")


def job_as_dict(address: str, record: JobRecord) -> dict[str, Any]:
    told = asdict(record)
    return {"broker": address, "job": told.pop("id"), **told, "attempts": attempts_made(record)}


def queue_as_dict(
    address: str, queue: Queue, next_wait_s: int | None = None, rates: Rates | None = None
) -> dict[str, Any]:
    told = asdict(queue)
    return {
        "broker": address,
        "queue": told.pop("name"),
        **told,
        "next_wait_s": next_wait_s,
        "put_per_s": round(rates.put, 3) if rates else None,
        "deleted_per_s": round(rates.deleted, 3) if rates else None,
    }


def scheduler_as_dict(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the process that schedules periodic tasks, from the facts about a supervisor that serves some."""
    queues = facts.get("scheduled_queues")
    return {"pid": facts.get("scheduler_pid"), "queues": queues} if queues else None


def supervisor_as_dict(supervisor: Supervisor) -> dict[str, Any]:
    found, facts = supervisor.found, supervisor.facts
    return {
        **_process_as_dict(supervisor.process),
        "app": facts.get("app"),
        "broker": facts.get("broker"),
        "state": supervisor.state,
        "state_for_s": _rounded(supervisor.state_for_s),
        "frozen_s": _rounded(found.frozen_s) if found else None,
        "generation": found.page.generation if found else None,
        "checks": found.page.checks if found else None,
        "reload": facts.get("reload"),
        "reloads": facts.get("reloads"),
        "queues": [_served_as_dict(queue) for queue in supervisor.queues],
        "workers": [_worker_as_dict(worker) for worker in supervisor.workers],
        "scheduler": scheduler_as_dict(facts),
        "deaths": facts.get("deaths", []),
        "total_private_bytes": supervisor.private_bytes,
        "total_pss_bytes": supervisor.pss_bytes,
    }


def _served_as_dict(queue: supervisors.Queue) -> dict[str, Any]:
    return {
        "name": queue.name,
        "wanted": queue.wanted,
        "minimum": queue.minimum,
        "maximum": queue.maximum,
        "ready": queue.ready,
        "serving": queue.serving,
        "busy": queue.busy,
        "exits": queue.exits,
        "tasks": [{"name": name, **_counts_as_dict(counts)} for name, counts in queue.tasks.items()],
    }


def _counts_as_dict(counts: Counts) -> dict[str, Any]:
    return {
        "done": counts.done,
        "failed": counts.failed,
        "retried": counts.retried,
        "buried": counts.buried,
        "discarded": counts.discarded,
        "expired": counts.expired,
        "crashed": counts.crashed,
        "given_back": counts.given_back,
        "busy_s": round(counts.busy_s, 6),
        "durations": counts.durations,
        "waited_s": round(counts.waited_s, 6),
        "waits": counts.waits,
    }


def _worker_as_dict(worker: Worker) -> dict[str, Any]:
    return {
        "queue": worker.queue,
        "activity": worker.activity,
        "state": worker.state,
        "is_old": worker.is_old,
        "job_id": worker.job,
        "task": worker.task,
        "progress": dict(zip(("done", "total"), worker.progress, strict=True)) if worker.progress else None,
        "limit": worker.limit,
        "job_for_s": _rounded(worker.since_s),
        "limited_for_s": _rounded(worker.limited_s),
        "broker_away_s": _rounded(worker.away_s),
        "done": worker.done,
        "failed": worker.failed,
        "retried": worker.retried,
        "buried": worker.buried,
        "crashed": worker.crashed,
        "restarts": worker.restarts,
        **_process_as_dict(worker.process),
    }


def _process_as_dict(process: Process) -> dict[str, Any]:
    memory = process.memory
    return {
        "pid": process.pid,
        "up_s": round(process.up_s, 1),
        "rss_bytes": process.rss_bytes,
        "private_bytes": memory.private_bytes if memory else None,
        "pss_bytes": memory.pss_bytes if memory else None,
        "shared_bytes": memory.shared_bytes if memory else None,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
