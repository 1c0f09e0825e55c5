"""A short run that detects a slowdown, by comparing us with the bare loops measured beside us.

All on one core, see :class:`stage.Cores`. The thresholds are three quarters of the values last recorded here: they
are not goals, and rise as we get faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from contenders import find
from figures import Goal, judge
from measures import (
    ENQUEUE_MANY,
    ENQUEUE_ON_ONE_CORE,
    LATENCY,
    LATENCY_P99,
    LOOP,
    ONE_CORE,
    OURS,
    PIPELINED,
    PREFETCHING,
    Effort,
    Measure,
    Throughput,
    enqueue_each,
    enqueue_many,
    latency,
)
from report import goals_table
from stage import Cores

EFFORT = Effort(rounds=5, seconds=0.4, many=10_000, paced=50)

MEASURES = (
    Measure((ONE_CORE,), "jobs/s", (OURS, PREFETCHING, LOOP), Throughput(1, Cores.ONE)),
    Measure((ENQUEUE_ON_ONE_CORE,), "calls/s", (OURS, LOOP), partial(enqueue_each, cores=Cores.ONE)),
    Measure((ENQUEUE_MANY,), "jobs/s", (OURS, PIPELINED), partial(enqueue_many, cores=Cores.ONE)),
    Measure((LATENCY, LATENCY_P99), "ms", (OURS, LOOP), partial(latency, cores=Cores.ONE)),
)

# The share of the recorded value that must be reached again.
ROOM = 0.75

LIMITS = (
    Goal(ONE_CORE, OURS, 0.75 * ROOM, is_at_least=True, against=LOOP),
    Goal(ONE_CORE, PREFETCHING, 1.2 * ROOM, is_at_least=True, against=LOOP),
    Goal(ENQUEUE_ON_ONE_CORE, OURS, 0.42 * ROOM, is_at_least=True, against=LOOP),
    Goal(ENQUEUE_MANY, OURS, 0.75 * ROOM, is_at_least=True, against=PIPELINED),
    Goal(LATENCY, OURS, 2.2 / ROOM, is_at_least=False, against=LOOP),
)


def check() -> bool:
    """Measure, and repeat failed measurements once; print the results and return whether all passed."""
    failed = _failures(MEASURES, LIMITS)
    if failed:
        print("Repeating the failed measurements:", flush=True)
        names = {goal.name for goal in failed}
        failed = _failures([each for each in MEASURES if not names.isdisjoint(each.names)], failed)
    return not failed


def _failures(measures: Sequence[Measure], limits: Sequence[Goal]) -> list[Goal]:
    contenders = find(with_peers=False)
    verdicts = judge(limits, [figure for measure in measures for figure in measure.run(contenders, EFFORT)])
    print(goals_table(verdicts), flush=True)
    return [verdict.goal for verdict in verdicts if not verdict.is_met]
