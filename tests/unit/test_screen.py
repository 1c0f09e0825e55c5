"""The screen of `top` as a value: its lines at any size, and what each key does."""

from __future__ import annotations

import re

import pytest

from flask_backend.broker.stats import UNTIL_RESUMED_S
from flask_backend.broker.stats import Queue as BrokerQueue
from flask_backend.cli.output import width_of
from flask_backend.cli.screen.keys import KeyReader
from flask_backend.cli.screen.screen import (
    HELP,
    Quit,
    Screen,
    SetPause,
    ShowFailures,
    ShowStacks,
    Text,
)
from flask_backend.operations.console import Rates
from flask_backend.operations.live import Look, QueueLook, Speed
from flask_backend.operations.supervisors import Counts, Process, Queue, Supervisor, Worker
from flask_backend.system.procfs import MemoryUse
from flask_backend.visible import visible_lines

MAIL = "com.example/mail"
NOW = 1_800_000_000.0
SIZES = [(80, 24), (140, 40), (20, 5), (1, 1), (300, 100), (40, 8), (80, 3), (5, 50)]


class Page:
    state, generation, now_ns = "running", 1, 10**10
    header = [0] * 15


class Found:
    page, frozen_s, is_stopped = Page, None, False


class Frozen(Found):
    frozen_s, is_stopped = 12.4, True


def worker(pid: int, **options) -> Worker:
    memory = MemoryUse(30 << 20, pid << 10, 9 << 20)
    options = {"activity": "idle", "state": "ready", "done": pid, "retried": 0, "buried": 1, "is_old": False} | options
    return Worker(Process(pid, 1, "", 60, 30 << 20, memory), options.pop("queue", MAIL), **options)


def look(workers=(), *, tasks=None, found=Found, **facts) -> Look:
    busy = sum(each.job is not None for each in workers)
    tasks = {"welcome": Counts(done=7)} if tasks is None else tasks
    queue = Queue(MAIL, wanted=3, ready=3, serving=3, busy=busy, tasks=tasks)
    reports = Queue("com.example/reports", wanted=1, ready=1, serving=1)
    supervisor = Supervisor(worker(4077).process, list(workers), [queue, reports], found, {"app": "example", **facts})
    speeds = {(MAIL, None): Speed(118.04, 0.25), (MAIL, "welcome"): Speed(118.04)}
    return Look(supervisor, speeds, NOW)


def queue(name: str, **counts) -> BrokerQueue:
    numbers = dict.fromkeys(("ready", "reserved", "delayed", "buried", "watching", "waiting", "put", "deleted"), 0)
    return BrokerQueue(name, **{**numbers, "pause_left_s": 0, "watching": 3, **counts})


QUEUES = QueueLook(
    {MAIL: queue(MAIL, ready=2970, buried=5), "com.example/reports": queue("com.example/reports", reserved=1)},
    {MAIL: Rates(3.25, 58.2)},
    {MAIL: 18},
    answered_at=100.0,
)
BUSY = [
    worker(14, activity="idle"),
    worker(11, activity="welcome 4s", job=7, task="welcome", since_s=4.2, progress=(3, 10)),
    worker(12, activity="report 75s", job=8, task="report", since_s=75, queue="com.example/reports", is_old=True),
]


def screen(*args, queues=QUEUES, **options) -> Screen:
    shown = Screen("btq://127.0.0.1:11300", **options)
    shown.update(look(*args) if args else look(), queues)
    return shown


def texts(shown: Screen, width: int = 80, height: int = 24, now: float = 100.0) -> list[str]:
    return [line.text for line in shown.draw(width, height, now)]


def press(shown: Screen, *keys: str):
    shown.draw(80, 24, 0.0)
    return [shown.press(key) for key in keys][-1]


def test_at_80_columns_it_shows_the_supervisor_the_queues_and_the_workers():
    lines = texts(screen(BUSY))
    lines[1] = re.sub(r"\d\d:\d\d:\d\d$", "HH:MM:SS", lines[1])
    assert [line.rstrip() for line in lines] == [
        "supervisor 4077, up 1m: running for 10s, generation 1, 3 workers, 4 of 4 ready",
        "2 busy, 118.0 done/s, 0.2 failed/s, private 4.0M, PSS 36.0M             HH:MM:SS",
        "app example, broker btq://127.0.0.1:11300",
        "1 queues 1-2 of 2",
        "queue^               ready reserved delayed buried  waits  in/s out/s workers",
        "com.example/mail      2970        0       0      5    18s   3.2    58     3/3",
        "com.example/reports      0        1       0      0      -     -     -     1/1",
        "[2 workers 1-3 of 3]  3 tasks  4 deaths",
        "    pid queue               does                    forv    done failed  private",
        "     12 com.example/reports report, old code       1m15s      12      1     0.0M",
        "     11 com.example/mail    welcome 3/10              4s      11      1     0.0M",
        "     14 com.example/mail    idle                       -      14      1     0.0M",
        *[""] * 11,
        "Tab table  < > sort  s stacks  f failures  p pause  Space hold  ? help  q quit",
    ]


def test_at_140_columns_the_names_are_whole_and_there_are_more_columns():
    lines = texts(screen(BUSY), 140, 40)
    assert lines[8].split() == ["pid", "queue", "does", "forv", "up", "done", "failed", "buried", "private", "PSS"]
    assert "com.example/reports report, old code" in lines[9]
    assert len(lines[9]) == 140


@pytest.mark.parametrize("is_ascii", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_screen_has_its_size_whatever_it_shows(size, is_ascii):
    hostile = "\x1b[2J\x1b]0;x\x07\u202egnol\u2066 日本語 e\u0301 \ud800 " + "very_" * 20
    deaths = [{"at": NOW - n, "reason": "crash", "description": hostile} for n in range(20)]
    reload = {"outcome": hostile, "has_failed": True, "at": NOW}
    tasks = {hostile * n: Counts(done=10**n, busy_s=3.0) for n in range(15)}
    answers = [QUEUES, QueueLook(error=hostile, away_since=3.0), QueueLook({hostile: queue(hostile)}, answered_at=1.0)]
    for count, queues in zip((0, 3, 30), answers, strict=True):
        workers = [worker(n + 1, activity=hostile, job=n or None, task=hostile, since_s=n) for n in range(count)]
        shown = Screen("btq://127.0.0.1:11300", is_ascii=is_ascii)
        shown.update(look(workers, tasks=tasks, found=Frozen, deaths=deaths, reload=reload), queues)
        for text in (None, Text(hostile, [hostile] * count), Text("", None)):
            shown.text = text
            for key in ("down", "end", "1", ">", "2", "I", "3", "G", "4", "page-up", "home", "enter"):
                shown.press(key)
                lines = shown.draw(*size, 100.0)
                assert len(lines) == size[1]
                assert max(width_of(line.text) for line in lines) <= size[0]
                assert all(visible_lines(line.text) == line.text and "\n" not in line.text for line in lines)
                assert not is_ascii or all(line.text.isascii() for line in lines)


def test_300_workers_are_scrolled_and_the_selected_one_stays_selected_while_rows_move():
    workers = [worker(n, job=n, task="t", since_s=float(n)) for n in range(1, 301)]
    shown = screen(workers)
    assert "[2 workers 1-14 of 300]" in "\n".join(texts(shown))
    press(shown, "end")
    lines = shown.draw(80, 24, 100.0)
    assert "287-300 of 300" in lines[7].text
    [selected] = [line for line in lines[:-1] if line.style == "7"]
    assert selected.text.split()[0] == "1"
    assert len(selected.text) == 80
    older = [worker(n, job=n, task="t", since_s=1000.0 * (n == 1)) for n in range(1, 301)]
    shown.update(look(older), QUEUES)
    [selected] = [line for line in shown.draw(80, 24, 100.0)[:-1] if line.style == "7"]
    assert selected.text.split()[0] == "1"
    shown.update(look(older[1:]), QUEUES)  # the worker has gone
    [selected] = [line for line in shown.draw(80, 24, 100.0)[:-1] if line.style == "7"]
    assert selected.text.split()[0] == "2"


def test_tables_are_sorted_by_each_column_and_the_unknown_comes_last():
    shown = screen(BUSY)
    order = []
    for _ in range(10):
        order.append([line.split()[0] for line in texts(shown)[9:12]])
        press(shown, ">")
    assert order[0] == ["12", "11", "14"]  # by "for", the idle one last
    press(shown, *"<<<<<<<<<<")
    press(shown, "I")
    assert [line.split()[0] for line in texts(shown)[9:12]] == ["11", "12", "14"]
    press(shown, "<", "<", "<")
    assert "pidv" in texts(shown)[8]
    assert [line.split()[0] for line in texts(shown)[9:12]] == ["14", "12", "11"]


def test_keys_ask_for_stacks_failures_and_pauses():
    shown = screen(BUSY)
    assert press(shown, "s") == press(shown, "enter") == ShowStacks(12)
    assert press(shown, "f") == ShowFailures("com.example/reports")
    assert press(shown, "down", "f") == ShowFailures(MAIL)
    assert press(shown, "1", "enter") == ShowFailures(MAIL)
    assert press(shown, "s") is None
    assert "select a worker" in texts(shown)[-1]
    assert press(shown, "p") is None
    assert texts(shown)[-1] == f"Pause {MAIL} (2,970 ready)? y/N"
    assert press(shown, "x") is None
    assert texts(shown)[-1].startswith("Tab table")
    assert press(shown, "p", "y") == SetPause(MAIL, UNTIL_RESUMED_S)
    shown.update(look(BUSY), QueueLook({MAIL: queue(MAIL, pause_left_s=90)}, answered_at=1.0))
    assert texts(shown)[4].split()[:2] == ["queue^", "pause"]
    assert texts(shown)[5].split()[:2] == [MAIL, "1m30s"]
    assert press(shown, "p", "y") == SetPause(MAIL, 0)
    assert isinstance(press(shown, "q"), Quit)


def test_a_queue_without_workers_is_red_and_a_paused_one_yellow():
    queues = {"lone": queue("lone", ready=2, watching=0), MAIL: queue(MAIL, pause_left_s=UNTIL_RESUMED_S)}
    shown = screen(queues=QueueLook(queues, answered_at=1.0))
    lines = shown.draw(80, 24, 2.0)
    rows = {line.text.split()[0]: line for line in lines[5:8]}
    assert (rows["lone"].style, rows[MAIL].style) == ("31", "33")
    assert rows["lone"].text.split()[-1] == "none"
    assert rows[MAIL].text.split()[1] == "paused"


def test_a_broker_that_is_away_is_told_and_its_numbers_are_left_out():
    shown = screen(BUSY, queues=QueueLook(QUEUES.queues, {}, {}, 100.0, "cannot connect: refused", 88.0))
    lines = shown.draw(80, 24, 100.0)
    assert (lines[2].text, lines[2].style) == ("broker away for 12s: cannot connect: refused", "31")
    assert lines[5].text.split()[1:] == [*["-"] * 7, "3/3"]
    assert press(shown, "f") is None
    assert texts(shown)[-1] == "the broker does not answer"


def test_a_frozen_supervisor_a_refused_reload_and_the_end_are_told():
    shown = screen()
    shown.update(look(BUSY, found=Frozen, reload={"outcome": "no module", "has_failed": True, "at": NOW - 5}), QUEUES)
    lines = shown.draw(80, 24, 100.0)
    assert ("frozen for 12 s: a signal has stopped it", "31") in [(line.text, line.style) for line in lines]
    assert ("last reload, 5s ago: no module", "31") in [(line.text, line.style) for line in lines]
    shown.update(None, QUEUES)
    lines = shown.draw(80, 24, 100.0)
    assert (lines[0].text, lines[0].style) == ("supervisor 4077 has ended", "31")
    assert [line.text for line in lines if "workers none" in line.text] == ["[2 workers none]  3 tasks  4 deaths"]
    shown.update(None, QUEUES)
    assert texts(shown)[0] == "supervisor 4077 has ended"


def test_a_held_screen_stays_and_keys_still_work():
    shown = screen(BUSY)
    press(shown, "space")
    before = texts(shown)
    assert "Space goes on" in before[1]
    shown.update(look(), QueueLook())
    assert texts(shown) == before
    press(shown, "3")
    assert "[3 tasks 1-1 of 1]" in texts(shown)[7]
    press(shown, "space")
    shown.update(look(), QUEUES)
    assert "Space goes on" not in texts(shown)[1]


def test_help_fits_80_columns_and_texts_are_scrolled_and_left():
    assert max(map(len, HELP.splitlines())) <= 79
    shown = screen(BUSY)
    press(shown, "?")
    lines = texts(shown)
    assert lines[3].startswith("[help]  1-19 of ")
    press(shown, "G")
    assert "last 5 seconds" in texts(shown)[-2]
    assert press(shown, "escape") is None
    assert shown.text is None
    shown.text = Text("worker 12", ["x" * 100], again=ShowStacks(12))
    assert press(shown, "r") == ShowStacks(12)
    assert [line for line in texts(shown) if "xx" in line] == ["x" * 80, "x" * 20]


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        (b"\x1b[A\x1bOB\x1b[5~\x1b[6~", ["up", "down", "page-up", "page-down"]),
        (b"\x1b[1~\x1b[H\x1bOF\x1b[8~\x1b[4~", ["home", "home", "end", "end", "end"]),
        (b"\x1b[1;5A\x1b[Z\t\r\n \x7f", ["up", "back-tab", "tab", "enter", "enter", "space", "backspace"]),
        (b"\x1bOP\x1b[11~\x1b[[A\x1b[21~", ["F1", "F1", "F1", "F10"]),
        (b"q?<>1\x00\x01", ["q", "?", "<", ">", "1"]),
        ("日é".encode(), []),
        (b"\x1b[200~x\x1b[201~\x1b[<0;3;4M\x1b[99~\x1b[~", ["x"]),
        (b"\x1bq", ["escape", "q"]),
        (b"\x1b\x1b[A", ["escape", "up"]),
        (b"\x1b[" + b"1" * 100, ["escape", "[", *["1"] * 100]),
    ],
)
def test_keys_are_read_however_they_arrive(sent, keys):
    whole, in_parts = KeyReader(), KeyReader()
    assert whole.feed(sent) + whole.end() == keys
    if b"1" * 100 not in sent:
        assert [key for byte in sent for key in in_parts.feed(bytes([byte]))] + in_parts.end() == keys


def test_a_lone_escape_is_a_key_once_nothing_follows():
    keys = KeyReader()
    assert (keys.feed(b"\x1b"), keys.is_waiting) == ([], True)
    assert (keys.end(), keys.is_waiting) == (["escape"], False)
    assert keys.feed(b"\x1b[") == []
    assert keys.feed(b"A") == ["up"]
