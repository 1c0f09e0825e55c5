"""A short run that detects a slowdown, by comparing us with the bare loops measured beside us.

All on one core, see :class:`stage.Cores`. The thresholds leave a third more than the values last recorded here: they
are not goals, and fall as we get faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from contenders import find
from figures import Goal, judge
from measures import (
    CALL_CPU,
    EIGHT,
    JOB_CPU,
    KEYWORDS_CPU,
    LATENCY,
    LATENCY_P99,
    LOGGING_CPU,
    LOOP,
    MAP_CPU,
    OURS,
    PIPELINED,
    PREFETCHING,
    Effort,
    JobCost,
    Measure,
    call_cost,
    latency,
)
from report import goals_table
from stage import Cores

EFFORT = Effort(rounds=3, seconds=0.8, paced=50)

MEASURES = (
    Measure((JOB_CPU,), "µs", (OURS, PREFETCHING, LOOP, EIGHT), JobCost()),
    Measure((LOGGING_CPU,), "µs", (OURS, LOOP), JobCost("fill_logging")),
    Measure((CALL_CPU,), "µs", (OURS, LOOP), partial(call_cost, how="call")),
    Measure((KEYWORDS_CPU,), "µs", (OURS, LOOP), partial(call_cost, how="call_with_keywords")),
    Measure((MAP_CPU,), "µs", (OURS, PIPELINED), partial(call_cost, how="call_many")),
    Measure((LATENCY, LATENCY_P99), "ms", (OURS, LOOP), partial(latency, cores=Cores.ONE)),
)

# The share of the recorded value in its threshold.
ROOM = 0.75

LIMITS = (
    Goal(JOB_CPU, OURS, 1.2 / ROOM, is_at_least=False, against=LOOP),
    Goal(JOB_CPU, PREFETCHING, 1.4 / ROOM, is_at_least=False, against=EIGHT),
    Goal(LOGGING_CPU, OURS, 2.3 / ROOM, is_at_least=False, against=LOOP),
    Goal(CALL_CPU, OURS, 1.6 / ROOM, is_at_least=False, against=LOOP),
    Goal(KEYWORDS_CPU, OURS, 1.2 / ROOM, is_at_least=False, against=LOOP),
    Goal(MAP_CPU, OURS, 1.0 / ROOM, is_at_least=False, against=PIPELINED),
    Goal(LATENCY, OURS, 1.9 / ROOM, is_at_least=False, against=LOOP),
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
