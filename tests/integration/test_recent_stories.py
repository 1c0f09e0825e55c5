"""The bounded read of stories for pages: what it holds, for how long, and what it may not do."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from support.proxy import Proxy
from support.stories import a_note, bury_many, put_note
from support.waiting import wait_until

from flask_backend.broker.connection import Connection
from flask_backend.config import Address, Settings
from flask_backend.errors import BrokerConnectionError
from flask_backend.names import failures_tube
from flask_backend.operations.console import Console
from flask_backend.operations.failures import WINDOWS_S, Count, Pattern, count_by_age
from flask_backend.operations.recent import StoryReader

WRITING = ("put", "delete", "release", "bury", "kick", "pause-tube", "touch")


@pytest.fixture
def settings(broker):
    return Settings(Address("127.0.0.1", broker.port))


@pytest.fixture
def console(settings):
    with Console(settings) as opened:
        yield opened


def writes(broker) -> dict[str, int]:
    with broker.client() as client:
        stats = client.stats()
    return {name: stats[f"cmd-{name}"] for name in WRITING}


def told(recent) -> dict[str, list[int]]:
    return {each.queue: [story.job for story in each.stories] for each in recent.failures}


def test_all_stories_of_all_queues_are_read_and_nothing_is_written(broker, settings, console):
    ids = {name: bury_many(settings, name, 3, exception="ValueError", message="no luck") for name in ("a", "b")}
    broker.put("a", b"{}", delay=100)
    before = writes(broker)
    recent = StoryReader().read(console)
    assert told(recent) == {name: jobs[::-1] for name, jobs in ids.items()}
    assert (recent.is_complete, recent.oldest_at, recent.total, recent.count) == (True, None, 6, 6)
    assert {story.message for story in recent.of("a").stories} == {"no luck"}
    assert writes(broker) == before
    assert broker.count(failures_tube("a"), "ready") == 3


def test_the_newest_of_all_queues_together_are_read_and_the_others_are_counted(settings, console):
    bury_many(settings, "old", 30, buried_at=lambda n: 1_000_000_000 + n)
    newest = bury_many(settings, "new", 30, buried_at=lambda n: 1_000_001_000 + n)
    recent = StoryReader(most=20).read(console)
    assert told(recent) == {"new": newest[:9:-1], "old": []}
    assert (recent.of("new").unread, recent.of("old").unread, recent.of("old").total) == (10, 30, 30)
    assert (recent.is_complete, recent.total, recent.oldest_at) == (False, 60, 1_000_001_010)


def test_one_queue_alone_can_be_read_beyond_the_newest_of_all(settings, console):
    quiet = bury_many(settings, "quiet", 2, buried_at=lambda n: 1_000_000_000 + n)
    bury_many(settings, "loud", 30)
    reader = StoryReader(most=20)
    assert told(reader.read(console))["quiet"] == []
    assert told(reader.read(console, "quiet")) == {"quiet": quiet[::-1]}
    assert reader.read(console, "absent").failures == []


def test_jobs_without_a_story_and_those_that_are_not_buried_any_longer_do_not_mix(broker, settings, console):
    kept, kicked = bury_many(settings, "q", 2)
    console.kick(kicked)
    with broker.client("q") as client:
        client.delete(client.reserve())
        client.put(b"{}")
        client.bury(client.reserve())
    recent = StoryReader().read(console)
    [failures] = recent.failures
    assert ([story.job for story in failures.stories], failures.untold, failures.unread) == ([kept], 1, 0)
    assert broker.count(failures_tube("q"), "ready") == 2  # a read deletes nothing


def test_a_thousand_whole_stories_are_held_for_less_than_50_ms(settings, console, broker):
    bury_many(settings, "q", 1500, traceback="x\n" * 3000, call="hello()" * 100)
    held: list[float] = []
    is_over = threading.Event()

    def watch() -> None:
        with Console(settings) as other:
            while not is_over.is_set():
                if other.queue(failures_tube("q")).reserved:
                    held.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    recent = StoryReader().read(console)
    is_over.set()
    watcher.join()
    assert 0 < recent.count <= 1000
    assert recent.of("q").total == 1500
    # A loaded machine may stop this process: what was reserved late is few, and given back at once.
    assert not held or held[-1] - held[0] < 0.25
    assert broker.count(failures_tube("q"), "ready") == 1500


def test_a_process_reads_at_most_once_in_a_while_until_an_action_changes_something(broker, settings, console):
    bury_many(settings, "q", 2)
    reader = StoryReader()
    first = reader.read(console)
    bury_many(settings, "q", 1)
    with ThreadPoolExecutor(4) as pool:
        assert set(map(id, pool.map(lambda _: reader.read(console), range(20)))) == {id(first)}
    reader.forget()
    assert reader.last() is first
    assert reader.read(console).count == 3


def test_a_read_that_an_action_overtakes_is_not_kept(settings, console, monkeypatch):
    bury_many(settings, "q", 1)
    reader = StoryReader()
    places_of = Console.places_of

    def act_first(self, ids):
        reader.forget()
        return places_of(self, ids)

    monkeypatch.setattr(Console, "places_of", act_first)
    first = reader.read(console)
    monkeypatch.undo()
    assert reader.read(console) is not first


def test_who_finds_other_readers_shows_the_last_state_and_since_when(settings, console):
    bury_many(settings, "q", 3)
    reader = StoryReader(every_s=0)
    first = reader.read(console)
    other = Connection(settings.address, settings.timeout_s, watch=failures_tube("q"))
    other.reserve_ready(1)
    stale = reader.read(console)
    assert (stale.failures, stale.read_at) == (first.failures, first.read_at)
    assert stale.stale_since >= first.read_at
    other.quit()
    assert reader.read(console).stale_since is None


def test_the_first_read_waits_for_a_moment_and_then_does_without_what_others_hold(settings, console):
    ids = bury_many(settings, "q", 3)
    other = Connection(settings.address, settings.timeout_s, watch=failures_tube("q"))
    other.reserve_ready(1)
    recent = StoryReader().read(console)
    assert (told(recent), recent.held) == ({"q": ids[:0:-1]}, 1)
    assert (recent.of("q").unread, recent.of("q").total, recent.is_complete) == (1, 3, False)
    assert not any(count.is_exact for aged in count_by_age(recent, time.time()) for count in aged.recent)
    other.quit()


def test_two_processes_and_a_command_that_read_at_once_show_all_stories_or_say_so(settings):
    bury_many(settings, "q", 300)
    readers = [StoryReader(every_s=0) for _ in range(3)]

    def look(reader: StoryReader) -> set[tuple[int, bool]]:
        with Console(settings) as own:
            return {(recent.count, recent.is_complete) for recent in (reader.read(own) for _ in range(20))}

    def command(_: object) -> set[tuple[int, bool]]:
        with Console(settings) as own:
            return {(len(own.failures("q").stories), True) for _ in range(10)}

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(look, reader) for reader in readers]
        running.append(pool.submit(command, None))
        seen = set().union(*(each.result() for each in running))
    assert {count for count, is_complete in seen if is_complete} == {300}


def test_a_fork_begins_again_even_if_a_thread_was_reading(settings, console):
    bury_many(settings, "q", 1)
    reader = StoryReader()
    reader._lock.acquire()
    told_by_child, told_to_us = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with Console(settings) as own:
                os.write(told_to_us, b"%d" % reader.read(own).count)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(told_by_child, 10) == b"1"
    os.close(told_by_child)
    os.close(told_to_us)


def test_without_a_broker_the_last_state_is_still_known(broker, settings, console):
    bury_many(settings, "q", 1)
    reader = StoryReader(every_s=0)
    first = reader.read(console)
    broker.kill()
    with pytest.raises(BrokerConnectionError):
        reader.read(console)
    assert reader.last() is first
    assert reader.last("q") is None


def test_after_a_restart_that_lost_all_jobs_only_the_new_ones_are_there(broker, settings):
    bury_many(settings, "q", 3, exception="Old")
    reader = StoryReader(every_s=0)
    with Console(settings) as console:
        reader.read(console)
    broker.stop()
    broker.start()
    bury_many(settings, "q", 1, exception="New")
    with Console(settings) as console:
        assert [story.kind for story in reader.read(console).of("q").stories] == ["New"]


def test_foreign_jobs_and_hostile_notes_are_passed_over(broker, settings, console):
    ids = bury_many(settings, "q", 1)
    for body in (b"", b"\x00", b"\xff" * 60_000, b"[" * 60_000, b'{"job":1,"traceback":"', b'{,"traceback":""}', b"{}"):
        broker.put(failures_tube("q"), body, priority=0)
    put_note(broker, a_note(ids[0], "other", message="forged"))
    recent = StoryReader().read(console)
    assert told(recent) == {"q": ids}
    assert recent.is_complete


def test_a_queue_without_a_valid_failures_tube_is_only_counted(broker, settings, console):
    name = "x" * 200
    with broker.client(name) as client:
        client.put(b"{}")
        client.bury(client.reserve())
    for queue in (None, name):
        assert StoryReader().read(console, queue).of(name).untold == 1


def test_as_few_notes_are_held_as_a_slow_network_allows(settings, broker):
    bury_many(settings, "q", 400, traceback="x" * 6000)

    def slowly() -> int:
        time.sleep(0.01)  # the network's delay, which is what is tested
        return 1 << 16

    proxy = Proxy(broker.port, budget=lambda: None, piece=slowly)
    with Console(Settings(Address.parse(proxy.uri))) as console:
        recent = StoryReader().read(console)
    proxy.close()
    assert 0 < recent.count < 400
    assert recent.of("q").unread == 400 - recent.count


class TestCounts:
    def test_failures_are_counted_by_age_and_exactly_if_all_were_read(self, settings, console):
        now = time.time()
        ages = [10, 20, 4000, 90_000, 700_000]
        bury_many(settings, "q", 5, exception="ValueError", endpoint="hello", buried_at=lambda n: now - ages[n])
        bury_many(settings, "q", 1, exception="KeyError", endpoint="hello", buried_at=lambda _: now - 5)
        found = count_by_age(StoryReader().read(console), now)
        assert [(each.group.kind, [str(count) for count in (*each.recent, each.all)]) for each in found] == [
            ("KeyError", ["1", "1", "1", "1"]),
            ("ValueError", ["2", "3", "4", "5"]),
        ]
        [chosen] = count_by_age(StoryReader().read(console), now, Pattern("/ValueError"))
        assert chosen.all == Count(5)

    def test_a_window_that_reaches_past_the_oldest_story_read_is_a_lower_bound(self, settings, console):
        now = time.time()
        bury_many(settings, "q", 10, exception="E", buried_at=lambda n: now - 7200 + n)
        bury_many(settings, "q", 5, exception="E", buried_at=lambda n: now - 60 + n)
        bury_many(settings, "whole", 1, exception="E", buried_at=lambda _: now - 30)
        found = {each.group.queue: each for each in count_by_age(StoryReader(most=9).read(console), now)}
        assert [str(count) for count in (*found["q"].recent, found["q"].all)] == ["5", *["≥ 8"] * 3]
        assert found["whole"].all.is_exact
        assert len(WINDOWS_S) == len(found["q"].recent)


def test_a_reader_that_hangs_is_left_out_after_some_seconds(settings, console, monkeypatch):
    bury_many(settings, "q", 3)
    reader = StoryReader(every_s=0)
    reader.read(console)
    monkeypatch.setattr("flask_backend.operations.recent._PATIENCE_S", 0.05)
    other = Connection(settings.address, settings.timeout_s, watch=failures_tube("q"))
    other.reserve_ready(1)
    wait_until(lambda: reader.read(console).held == 1, "it reads without the others")
    assert reader.read(console).of("q").total == 3
    other.quit()


def test_the_stories_of_a_queue_are_those_of_all_if_that_read_had_them_all(settings, console):
    bury_many(settings, "small", 2, buried_at=lambda n: time.time() + 100 + n)
    bury_many(settings, "large", 30)
    reader = StoryReader(most=20)
    whole = reader.read(console)
    assert reader.read_of(console, "small") is whole
    assert reader.read_of(console, "large") is not whole
    assert StoryReader(most=20).read_of(console, "small").failures[0].queue == "small"


def test_where_the_broker_hangs_readers_do_not_wait_for_one_another_in_turn(settings, monkeypatch):
    reader, reads, goes_on = StoryReader(), threading.Event(), threading.Event()

    def hang():
        reads.set()
        assert goes_on.wait(60)
        return []

    with Console(settings) as first, Console(replace(settings, timeout_s=0.2)) as other, ThreadPoolExecutor() as pool:
        monkeypatch.setattr(first, "failure_tubes", hang)
        slow = pool.submit(reader.read, first)
        try:
            assert reads.wait(60)
            with pytest.raises(BrokerConnectionError, match="another reader"):
                reader.read(other)
        finally:
            goes_on.set()
        assert slow.result() is reader.read(other)
