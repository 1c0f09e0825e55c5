"""Sentences of the documentation with numbers from measurements: they are written again with each run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from figures import Figure, find


@dataclass(frozen=True, slots=True)
class Fact:
    """A part of a page, as it stands there, with ``{}`` in place of each value; and these, from the figures.

    ``values`` raises :exc:`LookupError` if a figure was not measured: the page then stays as it is.
    """

    text: str
    values: Callable[[Sequence[Figure]], Sequence[str]]


def put_facts(page: str, facts: Iterable[Fact], figures: Sequence[Figure]) -> str:
    """Return the page with the values of today; raise :exc:`ValueError` for a fact that it does not have once."""
    for fact in facts:
        parts = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in fact.text.split("{}")]
        pattern = re.compile("(.{1,40}?)".join(f"({part})" for part in parts))
        matches = list(pattern.finditer(page))
        if len(matches) != 1:
            raise ValueError(f"the page has {len(matches)} times: {fact.text}")
        try:
            values = fact.values(figures)
        except LookupError:
            continue
        fixed = matches[0].groups()[::2]
        pieces = [piece for pair in zip(fixed, [*values, ""], strict=True) for piece in pair]
        page = page[: matches[0].start()] + "".join(pieces) + page[matches[0].end() :]
    return page


def median(figures: Sequence[Figure], name: str, contender: str) -> float:
    """Return the median of a figure; raise :exc:`LookupError` if it was not measured."""
    figure = find(figures, name, contender)
    if figure is None:
        raise LookupError(name)
    return figure.median


def rounded(value: float) -> str:
    """Return two significant digits, or three if the first is 1: the machine does not give more precision."""
    digits = 2 if f"{value:e}"[0] != "1" else 3
    return f"{float(f'{value:.{digits - 1}e}'):,.10g}"


def shown(figure: Figure) -> str:
    """Return the median of a figure, and its range if that differs."""
    low, high = rounded(min(figure.values)), rounded(max(figure.values))
    return rounded(figure.median) if low == high else f"{rounded(figure.median)} ({low} to {high})"
