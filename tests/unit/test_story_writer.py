"""Which stories are whole when thousands of jobs fail."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from flask_backend.errors import JobTooBigError
from flask_backend.masking import Mask
from flask_backend.stories import MAX_WHOLE, WHOLE_AGAIN_S, Story
from flask_backend.worker.settlement import StoryWriter


class Tube:
    """A failures tube, with as many notes as are wanted."""

    def __init__(self, notes: int = MAX_WHOLE) -> None:
        self.notes = notes
        self.written: list[Story] = []
        self.is_small = False

    def stats_tube(self, _names):
        return [SimpleNamespace(ready=self.notes - 1, reserved=1)] if self.notes else []

    def put(self, _tube, body, _options):
        if self.is_small and b"traceback" in body:
            raise JobTooBigError
        self.written.append(Story.decode(body))
        return 1

    @property
    def are_whole(self) -> list[bool]:
        return [story.traceback is not None and story.call is not None for story in self.written]


def a_story(exception: str | None = "ValueError", endpoint: str = "hello", **more) -> Story:
    told = {"job": 1, "queue": "q", "reason": "failed", "buried_at": 1e9, "host": "h", "pid": 1, **more}
    return Story(**told, exception=exception, endpoint=endpoint, traceback="Traceback", call="hello()")


@pytest.fixture
def clock():
    return SimpleNamespace(now=100.0)


@pytest.fixture
def writer(clock):
    return StoryWriter(Mask(), lambda: clock.now)


def test_all_are_whole_until_a_queue_has_a_thousand(writer):
    tube = Tube(MAX_WHOLE - 1)
    for _ in range(3):
        writer.write(tube, a_story())
    assert tube.are_whole == [True] * 3


def test_of_further_ones_the_first_of_each_endpoint_and_exception_in_a_minute_is_whole(writer, clock):
    tube = Tube()
    for exception, endpoint in (("A", "x"), ("A", "x"), ("B", "x"), ("A", "y"), ("B", "x")):
        writer.write(tube, a_story(exception, endpoint))
    assert tube.are_whole == [True, False, True, True, False]
    clock.now += WHOLE_AGAIN_S
    writer.write(tube, a_story("A", "x"))
    writer.write(tube, a_story("A", "x"))
    assert tube.are_whole[5:] == [True, False]


def test_a_whole_one_among_the_first_thousand_counts(writer):
    writer.write(Tube(0), a_story())
    tube = Tube()
    writer.write(tube, a_story())
    assert tube.are_whole == [False]


def test_signals_that_killed_workers_are_classes_too(writer):
    tube = Tube()
    for number in (9, 9, 11):
        writer.write(tube, a_story(None, death={"exit_signal": number}))
    assert tube.are_whole == [True, False, True]


def test_exceptions_without_end_of_new_classes_neither_fill_the_memory_nor_the_broker(writer, clock):
    tube = Tube()
    for number in range(1000):
        writer.write(tube, a_story(f"E{number}"))
    assert tube.are_whole == [True] * 200 + [False] * 800
    clock.now += WHOLE_AGAIN_S
    writer.write(tube, a_story("E5"))
    assert tube.are_whole[-1]


def test_a_whole_story_that_the_broker_does_not_take_is_shortened(writer):
    tube = Tube()
    tube.is_small = True
    writer.write(tube, a_story())
    assert tube.are_whole == [False]
