"""Measurements and their comparison: values of several rounds, their medians, ranges and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity of one contender, with its value in each round.

    ``name`` is the quantity, the same for all contenders; in round n all of them were measured in turn, so that
    their values at index n may be compared.
    """

    name: str
    contender: str
    unit: str
    values: list[float] = field(default_factory=list[float])

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def ratios_to(self, other: Figure) -> list[float]:
        """Return how many times the other's value this one is, round by round."""
        return [mine / theirs for mine, theirs in zip(self.values, other.values, strict=True)]


@dataclass(frozen=True, slots=True)
class Goal:
    """The value that a figure should reach: at least or at most ``bound``, absolute or times another contender's."""

    name: str
    contender: str
    bound: float
    is_at_least: bool
    against: str | None = None  # a contender; None for a bound in the figure's own unit

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.is_at_least else value <= self.bound


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a goal: the figure's values, or its ratios to the other's, and whether their median meets it."""

    goal: Goal
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        return self.goal.is_met(self.median)


def find(figures: Iterable[Figure], name: str, contender: str) -> Figure | None:
    return next((each for each in figures if each.name == name and each.contender == contender), None)


def judge(goals: Iterable[Goal], figures: Sequence[Figure]) -> list[Verdict]:
    """Return the verdict on each goal whose figures were measured."""
    verdicts: list[Verdict] = []
    for goal in goals:
        figure = find(figures, goal.name, goal.contender)
        other = find(figures, goal.name, goal.against) if goal.against else None
        if figure is None or (goal.against and other is None):
            continue
        values = figure.ratios_to(other) if other else figure.values
        verdicts.append(Verdict(goal, "times" if other else figure.unit, values))
    return verdicts
