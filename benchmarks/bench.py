"""Compare Flask-Backend with the limit set by the wire, and with Celery, Dramatiq, Huey and RQ.

Usage: ./run bench [--rounds N] [--only NAME] [--check] [--render]. Each round measures all contenders of a figure in
turn, each with its own broker and in its own processes. Times depend on the machine: compare values of one run. Linux
only: it reads /proc and chooses cores.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import growth
import machine
import memory
import pages
import supervision
from check import check
from contenders import find
from figures import Figure
from measures import MEASURES, Effort
from report import Report, figures_table

# Modules with other measurements: each has GOALS and measure(rounds), which returns figures.
OTHERS = (growth, supervision, memory)


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
    parser.add_argument("--render", action="store_true", help="write the pages and the pictures again from their JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # and so end the processes started
    if options.check:
        return 0 if check() else 1
    if options.render:
        pages.write(pages.read())
        return 0
    figures: list[Figure] = []
    report = Report(machine.describe(), options.rounds, figures, pages.GOALS, pages.settings())
    for some in measure(options.rounds, options.only):
        figures += some
        if not options.only:
            pages.write(report)  # write after each figure: the whole run takes long
    if options.only:
        print(f"\n{report.markdown()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
