"""The workers to run for each queue, and their share of the machine's resources."""

from __future__ import annotations

import click

from flask_backend.supervisor import MAX_CHILDREN, Bounds, Descriptors, Pool, TooFewDescriptorsError
from flask_backend.system.machine import available_cpus, available_memory

from .apps import AppLoadError, LoadedApp, check_queue


def plan_pools(
    loaded: LoadedApp, queues: tuple[tuple[str, tuple[int, int] | None], ...], workers: tuple[int, int] | None
) -> list[Pool]:
    """Return the pools of these queues, or of all, each with its own minimum and maximum or with ``workers``."""
    wanted = queues or tuple((name, None) for name in loaded.backend.queues)
    if not wanted:
        raise AppLoadError(f"app {loaded.app.name!r} registers no task and no receiver")
    of_each = Bounds(*workers) if workers else Bounds.fixed(available_cpus())
    pools = [Pool(name, Bounds(*own) if own else of_each) for name, own in wanted]
    for pool in pools:
        check_queue(loaded, pool.name)
    if len({pool.name for pool in pools}) < len(pools):
        raise click.UsageError("a queue is named twice: pass each once, as --queue NAME=WORKERS")
    if (total := count_workers(pools)) > MAX_CHILDREN:
        raise click.UsageError(f"{total} workers are too many: at most {MAX_CHILDREN}")
    return pools


def count_workers(pools: list[Pool]) -> int:
    """Return how many workers there may be."""
    return sum(pool.bounds.maximum for pool in pools)


def check_descriptors(descriptors: Descriptors, pools: list[Pool]) -> str:
    """Return how many descriptors the workers need; raise :exc:`AppLoadError` if the system allows fewer."""
    workers = count_workers(pools)
    try:
        descriptors.check(workers)
    except TooFewDescriptorsError as error:
        raise AppLoadError(str(error)) from error
    return descriptors.tell(workers)


def memory_to_share() -> int:
    """Return the private memory that all workers together may have, so that they fit beside their shared memory."""
    import psutil  # used by this alone, and slow to import

    shared = psutil.Process().memory_info().rss
    return max(1, int(available_memory() * 0.9) - shared)
