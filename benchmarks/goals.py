"""Goals for throughput, scheduling and latency, against the limit set by the wire and against peers."""

from __future__ import annotations

from figures import Goal
from measures import (
    CELERY,
    DRAMATIQ,
    ENQUEUE,
    ENQUEUE_APART,
    ENQUEUE_MANY,
    ENQUEUE_ON_ONE_CORE,
    HUEY,
    LATENCY,
    LATENCY_P99,
    LOOP,
    MEMORY,
    ONE_CORE,
    ONE_WORKER,
    ONE_WORKER_APART,
    OURS,
    PIPELINED,
    PREFETCHING,
    RQ,
    RQ_SIMPLE,
    TWO_WORKERS,
)

GOALS = (
    *(
        goal
        for name in (ONE_WORKER, ONE_WORKER_APART, ONE_CORE)
        for goal in (
            Goal(name, OURS, 1.2, is_at_least=True, against=LOOP),
            Goal(name, OURS, 0.9, is_at_least=True, against=PIPELINED),
            Goal(name, PREFETCHING, 1.8, is_at_least=True, against=OURS),
        )
    ),
    Goal(TWO_WORKERS, OURS, 4, is_at_least=True, against=HUEY),
    Goal(TWO_WORKERS, OURS, 20, is_at_least=True, against=CELERY),
    Goal(TWO_WORKERS, OURS, 3.5, is_at_least=True, against=DRAMATIQ),
    Goal(TWO_WORKERS, OURS, 40, is_at_least=True, against=RQ),
    Goal(TWO_WORKERS, OURS, 40, is_at_least=True, against=RQ_SIMPLE),
    *(Goal(name, OURS, 0.8, is_at_least=True, against=LOOP) for name in (ENQUEUE, ENQUEUE_APART, ENQUEUE_ON_ONE_CORE)),
    Goal(ENQUEUE_MANY, OURS, 0.7, is_at_least=True, against=PIPELINED),
    Goal(MEMORY, OURS, 5, is_at_least=False),  # flat: 100,000 bodies alone take 12 MB
    Goal(LATENCY, OURS, 1.3, is_at_least=False, against=LOOP),
    Goal(LATENCY_P99, OURS, 1.3, is_at_least=False, against=LOOP),
)
