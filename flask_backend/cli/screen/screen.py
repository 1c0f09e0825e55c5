"""The screen as a value: the data, the choices of a person, the action of each key, and the lines to draw. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from flask_backend.broker.stats import UNTIL_RESUMED_S
from flask_backend.cli.output import cut_to_width, show_seconds, show_size, width_of
from flask_backend.cli.summary import headline, why_frozen
from flask_backend.operations.live import Look, QueueLook
from flask_backend.visible import visible

from . import content
from .content import RED, YELLOW, DeathRow, QueueRow, TaskRow, WorkerRow
from .tables import BOLD, SELECTED, Choice, Table
from .terminal import Line

HELP = """\
up, down, k, j           select a row; also Page Up, Page Down, Home, End
Tab, 1, 2, 3, 4          go to the next table, or to one of them
<, >                     sort by another column: v is descending, ^ ascending
I                        reverse the order
s, Enter on a worker     show the Python stacks of the worker
f, Enter on a queue      show why jobs of the queue are buried
Enter on a death         show the whole text
p                        pause the queue, or resume it, after a question
a                        show all queues of the broker, or the supervisor's
Space                    hold the screen still, or go on
?                        this help
Esc, q                   go back; q or Ctrl-C in the tables ends

Queues: "waits" is how long the next job has been due, "-" if that is unknown.
"workers" are the ready ones with a connection to the broker, of those wanted.
Red: no worker takes jobs of the queue. Yellow: it is paused.

Workers: "for" is how long one has had its job. Yellow: it waits for its
broker. Memory is read of some workers at a time: it may be some seconds old.
Stacks are those of the moment of the key. A task is not disturbed by them.

Counts are those since the supervisor's start; of a worker, since its own.
Rates are those of the last 5 seconds.
"""


class Pane(StrEnum):
    QUEUES = "queues"
    WORKERS = "workers"
    TASKS = "tasks"
    DEATHS = "deaths"


PANES = tuple(Pane)


# -- what a key asks for -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quit:
    pass


@dataclass(frozen=True, slots=True)
class ShowStacks:
    worker: int


@dataclass(frozen=True, slots=True)
class ShowFailures:
    queue: str


@dataclass(frozen=True, slots=True)
class SetPause:
    """Pause a queue for ``seconds``, or resume it with 0."""

    queue: str
    seconds: int


Action = Quit | ShowStacks | ShowFailures | SetPause


@dataclass(slots=True)
class Text:
    """A text in place of the tables. ``again`` gets it anew; ``lines`` are unset until it has arrived."""

    title: str
    lines: Sequence[str] | None
    again: ShowStacks | ShowFailures | None = None
    first: int = 0
    page: int = 1
    count: int = 0  # of the lines, broken to the width of the screen


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    action: Action


@dataclass
class Screen:
    """Everything that is shown. Set :attr:`look` and :attr:`queues` to what is known; they are ignored while held."""

    broker: str
    is_ascii: bool = False
    shows_all_queues: bool = False
    is_held: bool = False
    message: Line | None = None
    text: Text | None = None
    question: Question | None = None
    pane: Pane = Pane.WORKERS
    _lower: Pane = Pane.WORKERS
    _look: Look | None = None
    _queues: QueueLook = field(default_factory=QueueLook)
    _ended: str | None = None
    _choices: dict[Pane, Choice] = field(
        default_factory=lambda: {
            Pane.QUEUES: Choice("queue", is_descending=False),
            Pane.WORKERS: Choice("for", is_descending=True),
            Pane.TASKS: Choice("done", is_descending=True),
            Pane.DEATHS: Choice("ago", is_descending=False),
        }
    )

    # -- what is known ---------------------------------------------------------------------------------------

    def update(self, look: Look | None, queues: QueueLook) -> None:
        """Take what is known now; without a ``look`` the supervisor has ended."""
        if self.is_held:
            return
        if look is not None:
            self._ended = None
        elif self._look is not None:
            self._ended = f"supervisor {self._look.supervisor.process.pid} has ended"
        self._look = look
        self._queues = queues

    def tell(self, text: str) -> None:
        """Show a message until the next key."""
        self.message = Line(text, YELLOW)

    def clean(self, text: str) -> str:
        """Return a text of another program, safe to show in a line of this terminal."""
        text = visible(text)
        return text.encode("ascii", "backslashreplace").decode() if self.is_ascii else text

    def table(self, pane: Pane) -> Table[Any]:
        choice, look = self._choices[pane], self._look
        match pane:
            case Pane.QUEUES:
                rows: list[Any] = list(content.queue_rows(look, self._queues))
                columns: Sequence[Any] = content.queue_columns(rows)
            case Pane.WORKERS:
                rows, columns = list(content.worker_rows(look)) if look else [], content.WORKER_COLUMNS
            case Pane.TASKS:
                rows, columns = list(content.task_rows(look)) if look else [], content.TASK_COLUMNS
            case Pane.DEATHS:
                rows, columns = list(content.death_rows(look)) if look else [], content.DEATH_COLUMNS
        return Table(columns, rows, choice, clean=self.clean)

    # -- keys ------------------------------------------------------------------------------------------------

    def press(self, key: str) -> Action | None:
        """Act on a key; return what must be done outside of the screen, if anything."""
        self.message = None
        if question := self.question:
            self.question = None
            return question.action if key in ("y", "Y") else None
        if self.text:
            return self._press_in_text(self.text, key)
        return self._press_in_tables(key)

    def _press_in_text(self, text: Text, key: str) -> Action | None:
        if key in ("q", "escape", "left", "backspace", "F10"):
            self.text = None
        elif steps := _steps({"space": "page-down", "enter": "down"}.get(key, key), text.page, text.count):
            text.first = max(0, min(text.count - text.page, text.first + steps))
        elif text.again and key in ("r", "s", "f"):
            return text.again
        return None

    def _press_in_tables(self, key: str) -> Action | None:
        table = self.table(self.pane)
        if steps := _steps(key, table.choice.page, len(table.rows)):
            table.move(steps)
            return None
        match key:
            case "tab" | "back-tab":
                at = PANES.index(self.pane) + (1 if key == "tab" else -1)
                self._go_to(PANES[at % len(PANES)])
            case "1" | "2" | "3" | "4":
                self._go_to(PANES[int(key) - 1])
            case "<" | ">" | "," | "." | "left" | "right":
                table.sort_by_next(1 if key in (">", ".", "right") else -1)
            case "I" | "i" | "R":
                table.choice.is_descending = not table.choice.is_descending
            case "a":
                self.shows_all_queues = not self.shows_all_queues
            case "space" | "Z" | "z":
                self.is_held = not self.is_held
            case "?" | "h" | "F1":
                self.text = Text("help", HELP.splitlines())
            case "q" | "F10":
                return Quit()
            case _:
                return self._act_on(table.selected, key) if key in ("enter", "s", "f", "p") else None
        return None

    def _go_to(self, pane: Pane) -> None:
        self.pane = pane
        if pane is not Pane.QUEUES:
            self._lower = pane

    def _act_on(self, row: QueueRow | WorkerRow | TaskRow | DeathRow | None, key: str) -> Action | None:
        match row, key:
            case WorkerRow(), "enter" | "s":
                return ShowStacks(row.worker.process.pid)
            case DeathRow(), "enter":
                self.text = Text(f"{row.reason}, {show_seconds(row.ago_s)} ago", [row.description])
            case _, "s":
                self.tell("select a worker to see its stacks: Tab, or 2, goes to them")
            case QueueRow(name=name) | WorkerRow(queue=name) | TaskRow(queue=name), _:
                return self._act_on_queue(name, key)
            case _:
                self.tell("select a queue first: 1 goes to them")
        return None

    def _act_on_queue(self, name: str, key: str) -> Action | None:
        known = self._queues.queues.get(name)
        if self._queues.error is not None or self._queues.answered_at is None:
            self.message = Line("the broker does not answer", RED)
        elif key != "p":
            return ShowFailures(name)
        elif known is None:
            self.tell(f"queue {name} does not exist on the broker: it has no jobs and no clients")
        elif known.is_paused:
            self.question = Question(f"Resume {name} ({known.ready:,} ready)?", SetPause(name, 0))
        else:
            self.question = Question(f"Pause {name} ({known.ready:,} ready)?", SetPause(name, UNTIL_RESUMED_S))
        return None

    # -- lines -----------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int, now: float) -> list[Line]:
        """Return all lines of a screen of this size. ``now`` is on the monotonic clock."""
        room = max(0, height - 1)
        head = self._head(width, now)[: room if room < _LEAST_ROOM else room - _LEAST_ROOM + 1]
        draw = self._draw_tables if self.text is None else partial(self._draw_text, self.text)
        lines = [*head, *draw(width, room - len(head))][:room]
        lines += [Line("")] * (room - len(lines))
        lines.append(self._bar(width))
        return [Line(self._fit(line.text, width), line.style) for line in lines[-height:]]

    def _fit(self, text: str, width: int) -> str:
        fitted = cut_to_width(self.clean(text), width)
        return fitted.replace("…", "~") if self.is_ascii else fitted

    def _head(self, width: int, now: float) -> list[Line]:
        lines = [self._broker_line(now)]
        if look := self._look:
            supervisor = look.supervisor
            if why := why_frozen(supervisor.found):
                lines.append(Line(why, RED))
            if reload := supervisor.facts.get("reload"):
                ago = show_seconds(max(0.0, look.at - reload["at"]))
                lines.append(Line(f"last reload, {ago} ago: {reload['outcome']}", RED if reload["has_failed"] else ""))
            clock = time.strftime("%H:%M:%S", time.localtime(look.at))
            right = f"held since {clock}: Space goes on" if self.is_held else clock
            lines[:0] = [Line(headline(supervisor), BOLD), Line(_spread(_numbers(look), right, width))]
        else:
            lines.insert(0, Line(self._ended or "no supervisor of this user runs here", RED))
        return lines

    def _broker_line(self, now: float) -> Line:
        queues = self._queues
        if queues.away_since is not None:
            return Line(f"broker away for {show_seconds(now - queues.away_since)}: {queues.error}", RED)
        app = self._look.supervisor.facts.get("app") if self._look else None
        shows_all = ", all its queues" if self.shows_all_queues else ""
        state = ": no answer yet" if queues.answered_at is None else shows_all
        return Line(f"{f'app {app}, ' if app else ''}broker {self.broker}{state}")

    def _draw_tables(self, width: int, room: int) -> list[Line]:
        upper, lower = self.table(Pane.QUEUES), self.table(self._lower)
        if room < _LEAST_FOR_BOTH:
            return self._draw_table(self.pane, self.table(self.pane), width, room)
        most = room - _LEAST_ROOM if self.pane is Pane.QUEUES else max(_LEAST_ROOM - 1, room // 3)
        height = min(2 + max(1, len(upper.rows)), most)
        return [
            *self._draw_table(Pane.QUEUES, upper, width, height),
            *self._draw_table(self._lower, lower, width, room - height),
        ]

    def _draw_table(self, pane: Pane, table: Table[Any], width: int, height: int) -> list[Line]:
        lines = table.draw(width, height - 1, has_focus=pane is self.pane)
        return [Line(self._caption(pane, table)), *lines] if height > 2 else lines[:height]  # noqa: PLR2004  # with a row

    def _caption(self, pane: Pane, table: Table[Any]) -> str:
        first, count = table.choice.first, len(table.rows)
        shown = f"{first + 1}-{min(count, first + table.choice.page)} of {count}" if count else "none"
        names = [Pane.QUEUES] if pane is Pane.QUEUES else PANES[1:]
        parts = [f"{PANES.index(name) + 1} {name}{f' {shown}' if name is pane else ''}" for name in names]
        return "  ".join(f"[{part}]" if name is self.pane else part for name, part in zip(names, parts, strict=True))

    def _draw_text(self, text: Text, width: int, room: int) -> list[Line]:
        lines = ["..."] if text.lines is None else list(_broken(map(self.clean, text.lines), width))
        text.count, text.page = len(lines), max(1, room - 1)
        text.first = max(0, min(text.first, text.count - text.page))
        shown = lines[text.first : text.first + text.page]
        caption = f"[{text.title}]  {text.first + 1}-{text.first + len(shown)} of {text.count}"
        return [Line(caption, BOLD), *map(Line, shown)]

    def _bar(self, width: int) -> Line:
        if self.question:
            return Line(f"{self.question.text} y/N", f"{BOLD};{YELLOW}")
        if self.message:
            return self.message
        keys = "Tab table  < > sort  s stacks  f failures  p pause  Space hold  ? help  q quit"
        if self.text:
            keys = "up, down scroll" + ("  r again" if self.text.again else "") + "  Esc back"
        return Line(cut_to_width(keys, width).ljust(width), SELECTED)


# The lines that the tables have at least, if there are so many below the first line of the head ...
_LEAST_ROOM = 6
# ... and from which on two of them are shown.
_LEAST_FOR_BOTH = 10


def _steps(key: str, page: int, count: int) -> int:
    """Return by how many of ``count`` lines, of which ``page`` are visible, a key moves; 0 if it does not move."""
    steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page-up": -page, "page-down": page}
    steps |= {"home": -count, "g": -count, "end": count, "G": count}
    return steps.get(key, 0)


def _numbers(look: Look) -> str:
    """Return the numbers of a supervisor in a line."""
    supervisor, speed = look.supervisor, look.speed
    busy = sum(queue.busy for queue in supervisor.queues)
    parts = [f"{busy:,} busy", f"{speed.done:,.1f} done/s", f"{speed.failed:,.1f} failed/s"]
    if supervisor.private_bytes is not None:
        parts.append(f"private {show_size(supervisor.private_bytes)}, PSS {show_size(supervisor.pss_bytes)}")
    return ", ".join(parts)


def _spread(left: str, right: str, width: int) -> str:
    """Return a line with a text at each end; the left one is cut if both have no room."""
    left = cut_to_width(left, max(0, width - width_of(right) - 2))
    return left + " " * max(2, width - width_of(left) - width_of(right)) + right


def _broken(lines: Iterable[str], width: int) -> Iterator[str]:
    """Yield the lines, each in as many parts as it needs."""
    for line in lines:
        part = ""
        for char in line:
            if part and width_of(part) + width_of(char) > width:
                yield part
                part = ""
            part += char
        yield part
