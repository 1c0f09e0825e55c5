"""Goals for throughput, scheduling, latency and CPU, against the limit set by the wire and against peers."""

from __future__ import annotations

from figures import Goal
from measures import (
    CALL_CPU,
    CELERY,
    DRAMATIQ,
    EIGHT,
    ENQUEUE,
    ENQUEUE_APART,
    ENQUEUE_MANY,
    HUEY,
    JOB_CPU,
    KEYWORDS_CPU,
    LATENCY,
    LATENCY_P99,
    LOGGING_CPU,
    LOOP,
    MAP_CPU,
    MEMORY,
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
        for name in (ONE_WORKER, ONE_WORKER_APART)
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
    *(Goal(name, OURS, 0.8, is_at_least=True, against=LOOP) for name in (ENQUEUE, ENQUEUE_APART)),
    Goal(ENQUEUE_MANY, OURS, 0.7, is_at_least=True, against=PIPELINED),
    Goal(MEMORY, OURS, 5, is_at_least=False),  # flat: 100,000 bodies alone take 12 MB
    Goal(LATENCY, OURS, 1.3, is_at_least=False, against=LOOP),
    Goal(LATENCY_P99, OURS, 1.3, is_at_least=False, against=LOOP),
    # What a busy host pays: of the peers, the ratios before this was measured, which are to grow.
    Goal(JOB_CPU, OURS, 1.25, is_at_least=False, against=LOOP),
    Goal(JOB_CPU, PREFETCHING, 1.3, is_at_least=False, against=EIGHT),
    Goal(LOGGING_CPU, OURS, 1.8, is_at_least=False, against=LOOP),
    Goal(CALL_CPU, OURS, 1.5, is_at_least=False, against=LOOP),
    Goal(KEYWORDS_CPU, OURS, 1.2, is_at_least=False, against=LOOP),
    Goal(MAP_CPU, OURS, 1.3, is_at_least=False, against=PIPELINED),
    Goal(JOB_CPU, DRAMATIQ, 2.4, is_at_least=True, against=OURS),
    Goal(JOB_CPU, HUEY, 3.5, is_at_least=True, against=OURS),
    Goal(JOB_CPU, CELERY, 12, is_at_least=True, against=OURS),
    Goal(JOB_CPU, RQ_SIMPLE, 45, is_at_least=True, against=OURS),
    Goal(CALL_CPU, HUEY, 1.5, is_at_least=True, against=OURS),
    Goal(CALL_CPU, DRAMATIQ, 2.4, is_at_least=True, against=OURS),
    Goal(CALL_CPU, RQ, 4.2, is_at_least=True, against=OURS),
    Goal(CALL_CPU, CELERY, 7.8, is_at_least=True, against=OURS),
)
