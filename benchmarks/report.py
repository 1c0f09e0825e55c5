"""The results of a run, for people and for programs: tables in Markdown, and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from figures import Figure, Goal, Verdict, find, judge

OURS = "ours"
BEGIN, END = "<!-- measurements: written by ./run bench -->", "<!-- end of the measurements -->"


@dataclass(frozen=True, slots=True)
class Report:
    """Figures, their goals, and the machine. ``settings`` is by contender."""

    machine: Mapping[str, str]
    rounds: int
    figures: Sequence[Figure]
    goals: Sequence[Goal]
    settings: Mapping[str, str]

    @classmethod
    def from_json(cls, text: str, goals: Sequence[Goal], settings: Mapping[str, str]) -> Report:
        """Read a report that :meth:`json` wrote; ``settings`` replace its own, by contender."""
        content = json.loads(text)
        figures = [Figure(**each) for each in content["figures"]]
        return cls(content["machine"], content["rounds"], figures, goals, content["settings"] | settings)

    def markdown(self, first: Sequence[str] = ()) -> str:
        """Return all results; the parts in ``first`` come before the goals."""
        parts = [
            machine_line(self.machine, self.rounds),
            *first,
            "### Goals",
            goals_table(judge(self.goals, self.figures)),
        ]
        for name in dict.fromkeys(figure.name for figure in self.figures):
            parts += [f"### {capitalized(name)}", figures_table([each for each in self.figures if each.name == name])]
        parts += ["### Settings of the contenders", *(f"**{name}.** {text}" for name, text in self.settings.items())]
        return "\n\n".join(parts)

    def json(self) -> str:
        verdicts = [
            asdict(verdict.goal) | {"unit": verdict.unit, "median": verdict.median, "is_met": verdict.is_met}
            for verdict in judge(self.goals, self.figures)
        ]
        content = {
            "machine": dict(self.machine),
            "rounds": self.rounds,
            "figures": [asdict(figure) for figure in self.figures],
            "goals": verdicts,
            "settings": dict(self.settings),
        }
        return json.dumps(content, indent=1) + "\n"


def put_between(page: str, begin: str, end: str, text: str) -> str:
    """Return the page with the text between two markers replaced."""
    head, has_begun, rest = page.partition(begin)
    _, has_ended, tail = rest.partition(end)
    if not has_begun or not has_ended:
        raise ValueError(f"the page has no {begin} and {end}")
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"


def machine_line(machine: Mapping[str, str], rounds: int) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    return f"Measured in {rounds} rounds on: {facts}."


def figures_table(figures: Sequence[Figure]) -> str:
    """Show the contenders of one figure, and the ratio of our value to each one's."""
    ours = find(figures, figures[0].name, OURS)
    rows = [
        (
            each.contender,
            f"{number(each.median)} {each.unit}",
            span(each.values),
            "" if ours in (None, each) else ratio(ours, each),
        )
        for each in figures
    ]
    return table(("", "median", "range", "ours is"), rows)


def goals_table(verdicts: Iterable[Verdict]) -> str:
    rows = [
        (
            f"{verdict.goal.name}: {verdict.goal.contender}",
            wanted(verdict),
            number(verdict.median),
            span(verdict.values),
            "met" if verdict.is_met else "**missed**",
        )
        for verdict in verdicts
    ]
    return table(("", "goal", "median", "range", ""), rows)


def wanted(verdict: Verdict) -> str:
    goal = verdict.goal
    bound = f"at {'least' if goal.is_at_least else 'most'} {goal.bound:.3g}"
    return f"{bound} times {goal.against}" if goal.against else f"{bound} {verdict.unit}"


def ratio(ours: Figure, other: Figure) -> str:
    """Show the median of the rounds' ratios; figures with different rounds have no ratio."""
    if len(ours.values) != len(other.values):
        return ""
    return f"{number(statistics.median(ours.ratios_to(other)))} times"


def span(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""


def number(value: float) -> str:
    """Show three digits, or the whole number."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table: words to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def capitalized(name: str) -> str:
    return name[:1].upper() + name[1:]
