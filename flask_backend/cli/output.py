"""What commands print: data on stdout, as a table or as JSON; messages and questions on stderr."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import click

from flask_backend.quantities import count_of as count_of  # noqa: PLC0414  # for the commands
from flask_backend.quantities import show_duration as show_duration  # noqa: PLC0414  # for the commands
from flask_backend.quantities import show_seconds as show_seconds  # noqa: PLC0414  # for the commands
from flask_backend.quantities import show_size as show_size  # noqa: PLC0414  # for the commands
from flask_backend.quantities import show_time as show_time  # noqa: PLC0414  # for the commands
from flask_backend.visible import json_visible, visible, visible_lines

LISTED_QUEUES = 20  # the rest is only counted
_JSON_AT_ONCE = 1 << 16  # characters that are printed at once
LABEL = 11  # columns of the name before a value

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def echo(text: object = "", *, err: bool = False, **style: Any) -> None:
    """Print a text. Control characters, which may come from other programs, are shown as escapes."""
    click.echo(styled(visible_lines(str(text)), **style), err=err)


def echo_json(value: object) -> None:
    """Print JSON that every parser reads. NaN and the infinities become strings: JSON lacks such numbers.

    An iterator becomes an array, and is printed while it is read, so that it may be of any length.
    """
    encoding = getattr(sys.stdout, "encoding", None) or ""
    is_ascii = not encoding.lower().startswith("utf")  # other encodings would escape differently from JSON
    encoder = json.JSONEncoder(ensure_ascii=is_ascii, allow_nan=False)
    pieces: list[str] = []
    size = 0
    for piece in _json_pieces(value, encoder, "\n"):
        pieces.append(piece)
        size += len(piece)
        if size > _JSON_AT_ONCE:
            click.echo(json_visible("".join(pieces)), nl=False)
            pieces, size = [], 0
    click.echo(json_visible("".join(pieces)))


def _json_pieces(value: Any, encoder: json.JSONEncoder, margin: str) -> Iterator[str]:
    """Yield the JSON of a value, indented by two; ``margin`` is the line break with the current indent."""
    match value:
        case dict():
            ends = "{}"
            items = ((f"{encoder.encode(name)}: ", each) for name, each in cast("dict[str, Any]", value).items())
        case list() | tuple() | Iterator():
            ends = "[]"
            items = (("", each) for each in cast("Iterable[Any]", value))
        case float() if not math.isfinite(value):
            yield '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
            return
        case _:
            yield encoder.encode(value)
            return
    before = ends[0]
    for name, each in items:
        yield f"{before}{margin}  {name}"
        yield from _json_pieces(each, encoder, f"{margin}  ")
        before = ","
    yield f"{margin}{ends[1]}" if before == "," else ends


def styled(text: str, **style: Any) -> str:
    """Style a text; ``click.echo`` strips the style again if the output is not a terminal."""
    return click.style(text, **style) if style and not os.environ.get("NO_COLOR") else text


def confirm(question: str, *, yes: bool) -> None:
    """Ask before a change; abort unless the answer is yes. Fail if there is no terminal to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.ClickException(f"{question} stdin is not a terminal; pass --yes to confirm.")
    click.confirm(visible(question), abort=True, err=True)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Numbers are right-aligned. A text may be cut to ``least`` columns of the terminal.

    Names that begin alike, such as those of queues, are cut at their beginning: ``keeps_end``.
    """

    title: str
    is_number: bool = False
    least: int | None = None
    keeps_end: bool = False


def labelled(name: str, value: object) -> str:
    """Return a line with a value and its name; no name continues the value of the line before."""
    return f"{f'{name}:' if name else '':<{LABEL}}{value}"


def echo_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], styles: Sequence[dict[str, Any]] = ()) -> None:
    """Print a table; ``styles`` are the styles of the rows, in the same order.

    Each row is one line. In a terminal that is too narrow, the leading texts have their own line, and the other cells
    take as many lines as they need.
    """
    for number, lines in enumerate(lay_out_table(columns, rows, terminal_width())):
        style = styles[number - 1] if 0 < number <= len(styles) else {"bold": True} if number == 0 else {}
        for line in lines:
            echo(line, **style)


def lay_out_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], room: int) -> Iterator[list[str]]:
    """Yield the lines of the titles, then of each row of a table in a terminal of ``room`` columns."""
    texts = [[column.title for column in columns], *([visible(cell) for cell in row] for row in rows)]
    widths = [max(width_of(text[i]) for text in texts) for i in range(len(columns))]
    layout = _lay_out(columns, widths, room)
    for text in texts:
        lines: list[str] = []
        for places in layout:
            cells = (" " * place.gap + _fill(text[place.column], place, columns[place.column]) for place in places)
            lines.append("".join(cells).rstrip())
        yield lines


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a column's cells in their line, and their width in the terminal."""

    column: int
    gap: int
    width: int


_GAP = 2
_INDENT = 2


def _lay_out(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[list[_Place]]:
    """Return the lines of a row, with the places of their cells."""
    least = [min(width, column.least or width) for column, width in zip(columns, widths, strict=True)]
    for gap in (_GAP, 1):
        if sum(least) + gap * (len(least) - 1) <= room:
            return [
                _stretch(columns, [_Place(i, gap if i else 0, width) for i, width in enumerate(least)], widths, room)
            ]
    first_number = next((i for i, column in enumerate(columns) if column.is_number), 0)
    lines: list[list[_Place]] = [[]]
    left = room
    for i, width in enumerate(least):
        if lines[-1] and (i == first_number or _GAP + width > left):
            lines.append([])
            left = room
        gap = _GAP if lines[-1] else _INDENT if len(lines) > 1 else 0
        lines[-1].append(_Place(i, gap, min(width, room - gap)))
        left -= gap + width
    return [_stretch(columns, line, widths, room) for line in lines]


def _stretch(columns: Sequence[Column], places: list[_Place], widths: Sequence[int], room: int) -> list[_Place]:
    """Widen the texts that would be cut by the free space in their line, the first name that keeps its end last."""
    left = room - sum(place.gap + place.width for place in places)
    stretched: dict[int, _Place] = {}
    for place in sorted(places, key=lambda place: -place.column if columns[place.column].keeps_end else -len(columns)):
        more = min(left, widths[place.column] - place.width)
        stretched[place.column] = _Place(place.column, place.gap, place.width + more)
        left -= more
    return [stretched[place.column] for place in places]


def _fill(text: str, place: _Place, column: Column) -> str:
    shown = cut_beginning(text, place.width) if column.keeps_end else cut_to_width(text, place.width)
    padding = " " * (place.width - width_of(shown))
    return padding + shown if column.is_number else shown + padding


def width_of(text: str) -> int:
    """Return the width of a text in a terminal.

    Chinese, Japanese and Korean characters take two columns, and those that combine with the one before none.
    """
    return len(text) if text.isascii() else sum(map(_width_of_char, text))


def cut_to_width(text: str, columns: int) -> str:
    """Return a text, cut to so many columns of a terminal."""
    if width_of(text) <= columns:
        return text
    width = 1  # the ellipsis
    for end, char in enumerate(text):
        width += _width_of_char(char)
        if width > columns:
            return f"{text[:end]}…"
    return text


def cut_beginning(text: str, columns: int) -> str:
    """Return a text, cut at its beginning to so many columns of a terminal."""
    return text if width_of(text) <= columns else cut_to_width(text[::-1], columns)[::-1]


def _width_of_char(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf") and char != "\xad":  # which is shown as a hyphen
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def wrapped(text: str, columns: int, indent: str = "") -> str:
    """Wrap a text to so many columns, at spaces only: commands to copy from it stay whole."""
    return textwrap.fill(text, columns, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def terminal_width() -> int:
    """Return the maximum width of lines: that of the terminal, or very many columns without one."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 10_000


def echo_more(queues: int) -> None:
    """Print how many queues are not listed, if any."""
    if queues > LISTED_QUEUES:
        echo(f"and {queues - LISTED_QUEUES:,} more queues", err=True)
