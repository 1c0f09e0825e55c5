"""Figures as text, for scripts that run on their own."""

from __future__ import annotations

from collections.abc import Sequence

from figures import Figure, Goal, judge


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
