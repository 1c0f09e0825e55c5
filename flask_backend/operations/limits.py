"""The limits on a broker: how much of each is used, and what the workers of this machine do with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flask_backend.broker.connection import Connection
from flask_backend.broker.limits import EXPIRED_S, load
from flask_backend.limit import REGISTRY
from flask_backend.names import is_limit_tube, limit_tube

from .supervisors import Supervisor, Worker


@dataclass(frozen=True, slots=True)
class LimitUse:
    """A limit: its numbers, how many of its tokens are used, and how many workers wait for one.

    With ``per``, a token is used for that many seconds after the start of a task. ``missing`` tokens are not used, but
    not free either: a worker that waits replaces them.
    """

    name: str
    n: int
    per: int | None
    used: int
    missing: int
    waiting: int


def limit_names(tubes: Iterable[str]) -> list[str]:
    """Return the names of the limits that these tubes belong to."""
    start = len(limit_tube(""))
    return sorted(tube[start : -len(REGISTRY)] for tube in tubes if is_limit_tube(tube) and tube.endswith(REGISTRY))


def find_use(connection: Connection, name: str) -> LimitUse | None:
    """Return the use of a limit, if it has ever been used. Raises :exc:`BrokerConnectionError`."""
    current = load(connection, name)
    if current is None:
        return None
    tube = limit_tube(name)
    tokens = [token for token in connection.stats_job(current.ids) if token.queue == tube]
    held = sum(token.state == "reserved" and token.time_left_s >= -EXPIRED_S for token in tokens)
    delayed = sum(token.state == "delayed" for token in tokens)
    ready = sum(token.state == "ready" for token in tokens)
    waiting = sum(each.waiting for each in connection.stats_tube([tube]))
    used = held + (delayed if current.per else 0)
    return LimitUse(name, current.n, current.per, used, max(0, current.n - held - delayed - ready), waiting)


def workers_of(supervisors: Iterable[Supervisor], address: str, limit: str) -> Sequence[Worker]:
    """Return the workers here that use this broker, and have a job that the limit counts, or wait for it."""
    return [
        worker
        for supervisor in supervisors
        if supervisor.serves(address)
        for worker in supervisor.workers
        if worker.limit == limit and worker.job is not None
    ]
