"""Compare Flask-Backend with the limit set by the wire, and with Celery, Dramatiq, Huey and RQ.

Usage: ./run bench [--rounds N] [--only NAME] [--check] [--render]. Each round measures all contenders of a figure in
turn, each with its own broker and in its own processes. Times depend on the machine: compare values of one run. Linux
only: it reads /proc and chooses cores.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import machine
import memory
import supervision
from chart import Panel, draw
from check import check
from contenders import find
from figures import Figure
from goals import GOALS
from measures import ENQUEUE, LATENCY, MEASURES, ONE_WORKER, TWO_WORKERS, Effort
from report import Report, figures_table, put_between_markers

DOCS = HERE.parent / "docs" / "explain"
# Modules with other measurements: each has GOALS and measure(rounds), which returns figures.
OTHERS = (supervision, memory)


def measure(rounds: int, only: str) -> Iterator[list[Figure]]:
    """Measure all figures whose name contains ``only``; print each as it is measured, and return them."""
    contenders = find(with_peers=True)
    for each in MEASURES:
        if any(only in name for name in each.names):
            yield _shown(each.run(contenders, Effort(rounds)))
    for other in OTHERS:
        if only in other.__name__:
            yield _shown(other.measure(rounds))


def _shown(figures: list[Figure]) -> list[Figure]:
    for name in dict.fromkeys(figure.name for figure in figures):
        print(f"\n{name}\n{figures_table([each for each in figures if each.name == name])}", flush=True)
    return figures


def write(report: Report) -> None:
    page = DOCS / "benchmarks.md"
    page.write_text(put_between_markers(page.read_text(), report.markdown()))
    (DOCS / "benchmarks.json").write_text(report.json())
    (DOCS / "benchmarks.svg").write_text(draw(panels(report.figures)))


def panels(figures: Sequence[Figure]) -> list[Panel]:
    notes = {
        ONE_WORKER: "more is better",
        TWO_WORKERS: "more is better",
        LATENCY: "less is better",
        ENQUEUE: "more is better",
    }
    chosen = [Panel([each for each in figures if each.name == name], note) for name, note in notes.items()]
    return [panel for panel in chosen if panel.figures]


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run bench", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME",
        help="the figures, or the module, with this in the name; docs stay as they are",
    )
    parser.add_argument("--check", action="store_true", help="fail if we have become slower; takes a minute")
    parser.add_argument("--render", action="store_true", help="write the page and the chart again from their JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # and so end the processes started
    if options.check:
        return 0 if check() else 1
    settings = {contender.name: contender.settings for contender in find(with_peers=True).values()}
    goals = [*GOALS, *(goal for other in OTHERS for goal in other.GOALS)]
    if options.render:
        write(Report.from_json((DOCS / "benchmarks.json").read_text(), goals, settings))
        return 0
    figures: list[Figure] = []
    report = Report(machine.describe(), options.rounds, figures, goals, settings)
    for some in measure(options.rounds, options.only):
        figures += some
        if not options.only:
            write(report)  # write after each figure: the whole run takes long
    if options.only:
        print(f"\n{report.markdown()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
