"""The pages and pictures of the documentation with the results of ``./run bench``, made from their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import busy
import costs_page
import goals
import growth
import memory
import supervision
from chart import Panel, draw
from contenders import find as find_contenders
from facts import Fact, median, put_facts, shown
from figures import Figure, find
from measures import ENQUEUE, LATENCY, ONE_WORKER, OURS, PREFETCHING, TWO_WORKERS
from report import BEGIN, END, Report, number, put_between

DOCS = Path(__file__).parents[1] / "docs"
EXPLAIN = DOCS / "explain"
DATA = EXPLAIN / "benchmarks.json"

GOALS = [*goals.GOALS, *growth.GOALS, *supervision.GOALS, *memory.GOALS]
PANELS = {
    ONE_WORKER: "more is better",
    TWO_WORKERS: "more is better",
    LATENCY: "less is better",
    ENQUEUE: "more is better",
}
TITLE = "Throughput and latency beside the bare wire and other task queues"
BUSY = "What a busy host pays"


def settings() -> dict[str, str]:
    return {contender.name: contender.settings for contender in find_contenders(with_peers=True).values()}


def read() -> Report:
    """Return the last results, with the goals and the settings of today."""
    return Report.from_json(DATA.read_text(), GOALS, settings())


def write(report: Report) -> None:
    for path, text in render(report).items():
        path.write_text(text)


def render(report: Report) -> dict[Path, str]:
    """Return the text of each file that shows these results, and of the page of ``costs.py``."""
    figures = report.figures
    page = EXPLAIN / "benchmarks.md"
    files = {
        page: put_between(page.read_text(), BEGIN, END, report.markdown(_busy(figures))),
        DATA: report.json(),
        EXPLAIN / "benchmarks.svg": draw(TITLE, [*_panels(figures)]),
        costs_page.PAGE: costs_page.render(costs_page.PAGE.read_text(), costs_page.read()),
    }
    if panels := busy.panels(figures):
        files[EXPLAIN / "busy.svg"] = draw(BUSY, panels)
    for path, facts in FACTS.items():
        files[path] = put_facts(files.get(path) or path.read_text(), facts, figures)
    return files


def _panels(figures: Sequence[Figure]) -> list[Panel]:
    chosen = [Panel([each for each in figures if each.name == name], note) for name, note in PANELS.items()]
    return [panel for panel in chosen if panel.figures]


def _busy(figures: Sequence[Figure]) -> list[str]:
    if not busy.panels(figures):
        return []
    return [
        f"### {BUSY}",
        f"![{BUSY}: the CPU time of jobs and calls, compared with the bare wire and with other task queues](busy.svg)",
        f"Bars are cut at {busy.MOST_TIMES} times ours. In the table, *times* compares with ours, round by round.",
        busy.costs_table(figures),
    ]


# -- the numbers in the text ---------------------------------------------------------------------------------

_WAYS = (OURS, memory.LIMITED, memory.ONE_TASK)


def _cells(figures: Sequence[Figure], name: str) -> list[str]:
    found = [find(figures, name, way) for way in _WAYS]
    if None in found:
        raise LookupError(name)
    return [shown(figure) for figure in found if figure]


FACTS = {
    EXPLAIN / "memory.md": [
        Fact("4 workers, 100 MB of objects: idle | {} | {} | {} |", lambda figures: _cells(figures, memory.PSS)),
        Fact(
            "at the end of 16 tasks that read all of them | {} | {} | {} |",
            lambda figures: _cells(figures, memory.PSS_PEAK),
        ),
        Fact("3 s later | {} | {} | {} |", lambda figures: _cells(figures, memory.PSS_READ)),
        Fact("no-op tasks per second | {} | {} | {} |", lambda figures: _cells(figures, memory.RATE)),
        Fact(
            "the largest worker has {} % of that as private memory",
            lambda figures: [number(median(figures, memory.PRIVATE, OURS))],
        ),
    ],
    DOCS / "run" / "workers.md": [
        Fact(
            "with 8 it does {} times as many no-op tasks",
            lambda figures: [
                number(median(figures, ONE_WORKER, PREFETCHING) / median(figures, ONE_WORKER, OURS)),
            ],
        )
    ],
}
