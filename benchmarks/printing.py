"""Scripts that measure in parts and run on their own: their command line, and their figures as text."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from figures import Figure, Goal, judge
from support.beanstalkd import Beanstalkd

Part = Callable[[Beanstalkd, int], list[Figure]]


def measure_parts(parts: Sequence[Part], rounds: int, only: str = "") -> list[Figure]:
    """Measure the parts whose function's name contains ``only``, on a broker of their own."""
    broker = Beanstalkd()
    try:
        return [figure for part in parts if only in part.__name__ for figure in part(broker, rounds)]
    finally:
        broker.stop()


def main(description: str | None, parts: Sequence[Part], goals: Sequence[Goal], rounds: int) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds)
    names = [part.__name__.removeprefix("measure_") for part in parts]
    parser.add_argument("--only", default="", help=f"a part: {', '.join(names)}")
    options = parser.parse_args()
    show(measure_parts(parts, options.rounds, options.only), goals)


def show(figures: Sequence[Figure], goals: Sequence[Goal]) -> None:
    """Print medians with ranges, and the verdicts on the goals."""
    for figure in figures:
        low, high = min(figure.values), max(figure.values)
        print(
            f"{figure.name:<64} {figure.contender:<22} median {figure.median:8.2f} {figure.unit:<10} "
            f"{low:.2f} to {high:.2f} (n={len(figure.values)})"
        )
    for verdict in judge(goals, figures):
        goal = verdict.goal
        bound = f"at {'least' if goal.is_at_least else 'most'} {goal.bound:g}"
        unit = f"times {goal.against}" if goal.against else verdict.unit
        word = "met" if verdict.is_met else "MISSED"
        print(f"{word:<6}  {goal.name}, {goal.contender}: {verdict.median:.2f} {unit}, goal {bound}")
