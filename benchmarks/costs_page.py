"""docs/explain/scaling.md: the tables and the numbers in it that ``costs.py`` has measured, from their JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facts import Fact, median, put_facts, rounded, shown
from figures import Figure
from report import machine_line, put_between

EXPLAIN = Path(__file__).parents[1] / "docs" / "explain"
PAGE, DATA = EXPLAIN / "scaling.md", EXPLAIN / "scaling.json"

IN_MEMORY, BINLOG, SYNCED = "in memory", "`-b`", "`-b -f0`"
SERVER = "beanstalkd"
A_JOB = "a job: the last two together"
SMALL, LARGE = "waiting job of 100 B", "waiting job of 1 kB"
CONNECTION, TUBE = "connection, idle", "tube"
MANY_TUBES = "put, 1,000 tubes against one"
EXAMPLE_B = 120  # the body of a small call
MILLION = 1_000_000


def read() -> dict[str, Any]:
    """Return what was measured, by section: its machine, rounds and figures."""
    sections: dict[str, Any] = json.loads(DATA.read_text())
    return sections


def write(sections: Mapping[str, Any]) -> None:
    DATA.write_text(json.dumps(sections, indent=1) + "\n")
    PAGE.write_text(render(PAGE.read_text(), sections))


def section_of(machine: Mapping[str, str], rounds: int, figures: Sequence[Figure]) -> dict[str, Any]:
    return {"machine": dict(machine), "rounds": rounds, "figures": [asdict(figure) for figure in figures]}


def figures_of(section: Mapping[str, Any]) -> list[Figure]:
    return [Figure(**each) for each in section["figures"]]


def render(page: str, sections: Mapping[str, Any]) -> str:
    """Return the page with the measured tables and numbers."""
    every: list[Figure] = []
    for name, section in sections.items():
        every += (figures := figures_of(section))
        text = f"{tables(name, figures)}\n\n{machine_line(section['machine'], section['rounds'])}"
        page = put_between(page, f"<!-- costs.py --only {name}: -->", f"<!-- end of {name} -->", text)
    return put_facts(page, FACTS, every)


def tables(section: str, figures: Sequence[Figure]) -> str:
    if section != "server":
        return _table(figures)
    costs, rates = ([each for each in figures if each.unit == unit] for unit in ("µs", "1/s"))
    return f"{_by_binlog('CPU time, µs', costs)}\n\n{_by_binlog('operations a second, here', rates)}"


def _table(figures: Sequence[Figure]) -> str:
    lines = ["| | | median (range) |", "|---|---|---|"]
    lines += [f"| {figure.name} | {figure.unit} | {shown(figure)} |" for figure in figures]
    return "\n".join(lines)


def _by_binlog(title: str, figures: Sequence[Figure]) -> str:
    by_name: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        by_name.setdefault(figure.name, {})[figure.contender] = figure
    columns = (IN_MEMORY, BINLOG, SYNCED)
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in by_name.items():
        plain = row[IN_MEMORY]
        cells = [shown(plain)]
        for contender in columns[1:]:
            ratio = statistics.median(row[contender].ratios_to(plain))
            cells.append(f"{shown(row[contender])}, {ratio:.2g} times")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


# -- the numbers in the text ---------------------------------------------------------------------------------


def _most(figures: Sequence[Figure], contender: str) -> str:
    """Return the jobs a second that the server's CPU allows."""
    return rounded(1e6 / median([each for each in figures if each.unit == "µs"], A_JOB, contender))


def _by_the_clock(figures: Sequence[Figure], contender: str) -> str:
    return rounded(median([each for each in figures if each.unit == "1/s"], A_JOB, contender))


def _around_body(figures: Sequence[Figure]) -> float:
    """Return the bytes of a waiting job beside its body."""
    return max(median(figures, SMALL, SERVER) - 100, median(figures, LARGE, SERVER) - 1000)


def _million_mb(figures: Sequence[Figure]) -> str:
    return rounded((_around_body(figures) + EXAMPLE_B) * MILLION / 1e6)


def _kb(figures: Sequence[Figure], name: str) -> str:
    return rounded(median(figures, name, SERVER) / 1000)


FACTS = (
    Fact(
        "**That is {} jobs a second in memory, and {} with `-b`.** By the clock {} and {} were done",
        lambda figures: [
            *(_most(figures, each) for each in (IN_MEMORY, BINLOG)),
            *(_by_the_clock(figures, each) for each in (IN_MEMORY, BINLOG)),
        ],
    ),
    Fact("**With `-f0` it is {}**, by the clock", lambda figures: [_by_the_clock(figures, SYNCED)]),
    Fact(
        "memory = jobs * ({} B + body) + connections * {} kB + tubes * {} kB",
        lambda figures: [rounded(_around_body(figures)), _kb(figures, CONNECTION), _kb(figures, TUBE)],
    ),
    Fact("a million of them take {} MB", lambda figures: [_million_mb(figures)]),
    Fact("with {} MB in the server during that time", lambda figures: [_million_mb(figures)]),
    Fact("A thousand cost {} MB", lambda figures: [_kb(figures, CONNECTION)]),
    Fact(
        "with 1,000 of them a `put` costs {} times as much",
        lambda figures: [rounded(median(figures, MANY_TUBES, SERVER))],
    ),
)
