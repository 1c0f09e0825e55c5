"""What a busy host pays: the CPU time of each operation, of all contenders, as one table and one picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from chart import Panel
from figures import Figure, find
from measures import CALL_CPU, JOB_CPU, KEYWORDS_CPU, LOGGING_CPU, MAP_CPU, OURS
from report import number, table

COLUMNS = {
    JOB_CPU: "no-op job",
    LOGGING_CPU: "job that logs one line",
    CALL_CPU: "call",
    KEYWORDS_CPU: "call with keyword arguments",
    MAP_CPU: "call in a map",
}
# The longest bars in the picture, in multiples of ours: those of peers that take far more would make ours invisible.
MOST_TIMES = 8


def costs_table(figures: Sequence[Figure]) -> str:
    """Show a row for each contender: the median µs of each operation, and how many times ours that is."""
    contenders = dict.fromkeys(figure.contender for figure in figures if figure.name in COLUMNS)
    rows = [(contender, *(_cell(figures, name, contender) for name in COLUMNS)) for contender in contenders]
    return table(("µs of CPU", *COLUMNS.values()), rows)


def _cell(figures: Sequence[Figure], name: str, contender: str) -> str:
    figure, ours = find(figures, name, contender), find(figures, name, OURS)
    if figure is None:
        return ""
    if ours in (None, figure) or len(ours.values) != len(figure.values):
        return number(figure.median)
    return f"{number(figure.median)}, {number(statistics.median(figure.ratios_to(ours)))} times"


def panels(figures: Sequence[Figure]) -> list[Panel]:
    found = [[figure for figure in figures if figure.name == name] for name in COLUMNS]
    return [Panel(some, "less is better", MOST_TIMES * some[0].median) for some in found if some]
