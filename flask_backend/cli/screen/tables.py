"""Tables of a fixed width, with a column to sort by and a row that is selected. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from flask_backend.cli.output import cut_beginning, cut_to_width, width_of

from .terminal import Line


class Row(Protocol):
    """A row of a table: what it is about, which stays while its values change, and its style."""

    @property
    def identity(self) -> object: ...
    @property
    def style(self) -> str: ...


R = TypeVar("R", bound=Row)

BOLD, SELECTED = "1", "7"


@dataclass(frozen=True, slots=True)
class Column(Generic[R]):
    """A column: its text in a row, and the value by which it is sorted, in words ``None`` last.

    Numbers have their ``width`` and are right-aligned. In a narrow terminal the columns with the highest ``rank`` are
    left out, so that texts have their ``width``, and up to ``wish`` if they need it. The room that is left goes to
    texts that need it or, if the column ``fills`` the line, all to that.
    """

    title: str
    width: int
    text: Callable[[R], str]
    key: Callable[[R], Any]
    is_number: bool = True
    rank: int = 0
    wish: int = 0
    fills: bool = False
    keeps_end: bool = False  # cut at its beginning


@dataclass(slots=True)
class Choice:
    """What a person has chosen in a table: the column to sort by, the order, and the row by its identity."""

    sort: str
    is_descending: bool
    row: object = None
    first: int = 0  # the number of the first visible row
    page: int = field(default=1, init=False)  # how many rows were visible


class Table(Generic[R]):
    """The rows of a table, sorted as chosen. ``clean`` makes a text of another program safe to show."""

    def __init__(
        self,
        columns: Sequence[Column[R]],
        rows: Sequence[R],
        choice: Choice,
        *,
        clean: Callable[[str], str] = str,
    ) -> None:
        self.columns = columns
        self.choice = choice
        self._clean = clean
        self.rows = self._sort(rows)

    def _sort(self, rows: Sequence[R]) -> list[R]:
        column = next((each for each in self.columns if each.title == self.choice.sort), self.columns[0])
        known = [row for row in rows if column.key(row) is not None]
        unknown = [row for row in rows if column.key(row) is None]
        return sorted(known, key=column.key, reverse=self.choice.is_descending) + unknown

    @property
    def position(self) -> int:
        """The number of the selected row; of the first one if that row is gone."""
        return next((i for i, row in enumerate(self.rows) if row.identity == self.choice.row), 0)

    @property
    def selected(self) -> R | None:
        return self.rows[self.position] if self.rows else None

    def move(self, steps: int) -> None:
        """Select another row, at most the first or the last one."""
        if self.rows:
            position = max(0, min(len(self.rows) - 1, self.position + steps))
            self.choice.row = self.rows[position].identity

    def sort_by_next(self, steps: int) -> None:
        """Sort by another column."""
        titles = [column.title for column in self.columns]
        at = titles.index(self.choice.sort) if self.choice.sort in titles else 0
        column = self.columns[(at + steps) % len(titles)]
        self.choice.sort, self.choice.is_descending = column.title, column.is_number

    def draw(self, width: int, height: int, *, has_focus: bool) -> list[Line]:
        """Return the title and the visible rows, ``height`` lines at most."""
        if height <= 0:
            return []
        places = self._lay_out(width)
        lines = [Line(_join([(self._title(column), column, size) for column, size in places], width), BOLD)]
        self._scroll(height - 1)
        first = self.choice.first
        for row in self.rows[first : first + height - 1]:
            text = _join([(self._clean(column.text(row)), column, size) for column, size in places], width)
            is_selected = has_focus and row is self.selected
            style = ";".join(filter(None, [row.style, SELECTED if is_selected else ""]))
            lines.append(Line(text + " " * (width - width_of(text)) if is_selected else text, style))
        return lines

    def _scroll(self, page: int) -> None:
        """Show the selected row."""
        choice = self.choice
        choice.page = max(1, page)
        lowest = max(0, len(self.rows) - choice.page)
        choice.first = max(self.position - choice.page + 1, min(choice.first, self.position, lowest), 0)

    def _title(self, column: Column[R]) -> str:
        if column.title != self.choice.sort:
            return column.title
        return f"{column.title}{'v' if self.choice.is_descending else '^'}"

    def _lay_out(self, width: int) -> list[tuple[Column[R], int]]:
        """Return the columns that fit, and their widths."""
        needed = {column.title: self._measure(column) for column in self.columns}
        least = {column.title: max(column.width, min(needed[column.title], column.wish)) for column in self.columns}
        shown = list(self.columns)
        while len(shown) > 1 and sum(least[column.title] + 1 for column in shown) - 1 > width:
            shown.remove(max(reversed(shown), key=lambda column: column.rank))
        left = max(0, width - sum(least[column.title] + 1 for column in shown) + 1)
        places: list[tuple[Column[R], int]] = []
        for column in shown:
            more = left if column.fills else max(0, min(left, needed[column.title] - least[column.title]))
            left -= more
            places.append((column, least[column.title] + more))
        return places

    def _measure(self, column: Column[R]) -> int:
        """Return the width that the texts of a column need."""
        if column.is_number or column.fills:
            return column.width
        return max((width_of(self._clean(column.text(row))) for row in self.rows), default=0)


def _join(cells: Sequence[tuple[str, Column[R], int]], width: int) -> str:
    parts: list[str] = []
    for text, column, size in cells:
        shown = cut_beginning(text, size) if column.keeps_end else cut_to_width(text, size)
        padding = " " * (size - width_of(shown))
        parts.append(padding + shown if column.is_number else shown + padding)
    return cut_to_width(" ".join(parts).rstrip(), width)
