"""Inspecting a real server and acting on it: queues, jobs, the stories of buried ones."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from support.reserving import reserve, reserved
from support.stories import a_note, put_note
from support.waiting import wait_until

from flask_backend.broker.connection import Connection
from flask_backend.broker.pipeline import Pipeline
from flask_backend.broker.stats import UNTIL_RESUMED_S
from flask_backend.config import Address, Settings
from flask_backend.errors import BrokerConnectionError, QueueNameError
from flask_backend.masking import Mask
from flask_backend.names import failures_tube
from flask_backend.operations import console as console_module
from flask_backend.operations import notes
from flask_backend.operations.actions import Action, Target, act_on_failures, act_on_jobs
from flask_backend.operations.console import Console, Rates, measure_rates
from flask_backend.operations.failures import Pattern, group
from flask_backend.stories import Story
from flask_backend.worker.settlement import StoryWriter, bury

TUBE = failures_tube("q")


@pytest.fixture
def settings(broker):
    return Settings(Address("127.0.0.1", broker.port))


@pytest.fixture
def console(settings):
    with Console(settings) as opened:
        yield opened


@pytest.fixture
def connect(settings):
    """Make connections that watch a queue; they are closed with the test."""
    made: list[Connection] = []

    def connect(queue: str) -> Connection:
        made.append(Connection(settings.address, settings.timeout_s, watch=queue))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


@pytest.fixture
def buried(broker, settings):
    """Bury jobs as workers do, with their story, and return their ids."""

    def make(count: int = 1, queue: str = "q", **told) -> list[int]:
        with holding(broker, settings, queue, count) as (worker, ids):
            for job_id in ids:
                bury(worker, a_note(job_id, queue, **told), 65536, StoryWriter(Mask()))
        return ids

    return make


@pytest.fixture
def buried_without_story(broker, settings):
    def make(count: int = 1, queue: str = "q") -> list[int]:
        with holding(broker, settings, queue, count) as (worker, ids):
            for job_id in ids:
                worker.bury(job_id, 65536)
        return ids

    return make


@contextmanager
def holding(broker, settings, queue, count):
    worker = Connection(settings.address, settings.timeout_s, watch=queue)
    ids = [broker.put(queue, b"{}") for _ in range(count)]
    replies = worker.ask([b"reserve-with-timeout 0\r\n"] * count)
    assert [int(reply.words[0]) for reply in replies] == ids
    yield worker, ids
    worker.close()


def jobs_of(failures) -> list[int]:
    return [story.job for story in failures.stories]


class TestQueues:
    def test_all_are_there_by_name_with_their_jobs_in_each_state(
        self, console, broker, connect, buried, buried_without_story
    ):
        buried()
        buried_without_story()
        for options in ({}, {"delay": 100}, {}):
            broker.put("q", b"x", **options)
        connect("q").ask([b"reserve-with-timeout 0\r\n"])
        broker.put("com.example/9", b"x")
        console.last_id()
        other, q = console.queues()
        assert (other.name, other.ready, other.watching) == ("com.example/9", 1, 0)
        assert (q.name, q.ready, q.reserved, q.delayed, q.buried, q.jobs) == ("q", 1, 1, 1, 2, 5)
        assert (q.put, q.deleted, q.watching, q.waiting) == (5, 0, 1, 0)

    def test_default_is_listed_if_it_has_a_job_or_a_worker_waits_for_one(self, console, broker):
        with broker.client():
            assert console.queues() == []
            job_id = broker.put("default", b"x")
            assert [queue.name for queue in console.queues()] == ["default"]
            console.delete(job_id)
        with broker.client("default"), socket.create_connection(("127.0.0.1", broker.port)) as worker:
            assert console.queues() == []
            worker.sendall(b"reserve\r\n")
            wait_until(lambda: [queue.name for queue in console.queues()] == ["default"], "it is one")

    def test_the_name_of_a_queue_may_be_a_number(self, console, broker):
        job_id = broker.put("17", b"x")
        assert [queue.name for queue in console.queues()] == ["17"]
        assert console.job(job_id).queue == "17"

    def test_watching_and_waiting_workers_are_counted(self, console, connect):
        connect("q")
        Pipeline(connect("q")).reserve(60)
        wait_until(lambda: console.queue("q").waiting == 1, "one waits")
        assert console.queue("q").watching == 2

    def test_jobs_without_a_worker_are_noticed(self, console, broker, connect):
        broker.put("q", b"x", delay=100)
        assert not console.queue("q").is_unwatched
        broker.put("q", b"x")
        assert console.queue("q").is_unwatched
        connect("q")
        assert not console.queue("q").is_unwatched

    def test_a_queue_that_the_server_does_not_have_is_none(self, console):
        assert console.queue("q") is None
        assert console.next_ready_of(["q"]) == {}
        assert console.next_buried("q") is None
        assert console.failures("q").count == 0

    @pytest.mark.parametrize("name", ["", "a b", "a\r\ndelete 1", "-a", "ä", "x" * 201])
    def test_an_invalid_name_does_not_reach_the_server(self, console, name):
        for ask in (console.queue, console.next_buried, console.failures):
            with pytest.raises(QueueNameError):
                ask(name)
        with pytest.raises(QueueNameError):
            console.pause(name, 1)

    def test_the_next_job_is_the_one_with_the_first_priority(self, console, broker):
        broker.put("q", b"x", priority=5)
        first = broker.put("q", b"x", priority=4)
        broker.put("q", b"x", priority=3, delay=100)
        assert console.next_ready_of(["q"])["q"].id == first

    def test_the_wait_of_the_next_job_is_known_without_its_delay_until_it_was_kicked_or_reserved(
        self, console, broker, connect
    ):
        kicked = broker.put("kicked", b"x", delay=100)
        console.kick(kicked)
        broker.put("q", b"x", delay=1)
        wait_until(lambda: (console.next_ready_of(["q"]).get("q") or console.job(kicked)).waits_s, "it has waited")
        head = console.next_ready_of(["q"])["q"]
        assert (head.waits_s, head.delay_s) == (head.age_s - 1, 1)
        assert console.next_ready_of(["kicked"])["kicked"].waits_s is None
        connection = connect("q")
        connection.release(reserve(connection).id, 0, 0)
        assert console.next_ready_of(["q"])["q"].waits_s is None

    def test_the_next_jobs_of_many_queues_are_found_at_once_and_released(self, console, broker):
        ids = {f"q{i}": broker.put(f"q{i}", b"x" * 10_000) for i in range(300)}
        found = console.next_ready_of([*ids, "empty"])
        assert {name: job.id for name, job in found.items()} == ids
        console.delete_each(ids.values())
        assert console.queues() == []

    def test_the_wait_of_the_next_job_leaves_out_its_delay_and_is_unknown_once_it_was_reserved(self, console, broker):
        delayed, _ = broker.put("q", b"x", delay=1), broker.put("other", b"x", delay=100)
        assert console.next_waits(console.queues()) == {}
        wait_until(lambda: console.queue("q").ready, "it is due")
        wait_until(lambda: console.job(delayed).age_s >= 2, "it waits for a second")
        waits = console.next_waits(console.queues())
        assert 1 <= waits.pop("q") < 60
        assert waits == {}
        with broker.client("q") as client:
            client.release(client.reserve())
        assert console.next_ready_of(["q"])["q"].id == delayed
        assert console.next_waits(console.queues()) == {}

    def test_rates_are_the_puts_and_deletes_between_two_looks(self, console, broker):
        broker.put("q", b"x")
        before = console.queues()
        for name in ("q", "q", "new"):
            broker.put(name, b"x")
        broker.take("q")
        rates = measure_rates(before, console.queues(), 0.5)
        assert rates == {"q": Rates(put=4, deleted=2), "new": Rates(put=2, deleted=0)}

    def test_a_queue_that_was_gone_between_two_looks_counts_from_its_new_beginning(self, console, broker):
        broker.put("q", b"x")
        broker.put("q", b"x")
        before = console.queues()
        broker.take("q")
        broker.take("q")
        broker.put("q", b"x")
        assert measure_rates(before, console.queues(), 2) == {"q": Rates(put=0.5, deleted=0)}

    def test_a_pause_keeps_jobs_from_being_reserved_until_it_is_ended(self, console, broker, connect):
        broker.put("q", b"x")
        worker = connect("q")
        assert console.pause("q", 100)
        queue = console.queue("q")
        assert (queue.is_paused, queue.is_paused_until_resumed) == (True, False)
        assert 98 <= queue.pause_left_s <= 100
        assert reserve(worker, 0) is None
        waiting = Pipeline(worker)
        waiting.reserve(60)
        wait_until(lambda: broker.waiting("q") == 1, "it waits")
        assert console.pause("q", 0)
        assert reserved(waiting).body == b"x"
        assert not console.queue("q").is_paused

    def test_a_pause_may_last_until_it_is_ended(self, console, broker):
        broker.put("q", b"x")
        console.pause("q", UNTIL_RESUMED_S)
        assert console.queue("q").is_paused_until_resumed
        assert console.pause("q", 0)
        assert not console.queue("q").is_paused

    def test_a_missing_queue_cannot_be_paused(self, console):
        assert not console.pause("q", 10)


class TestJobs:
    def test_a_job_is_returned_whole(self, console, broker):
        job_id = broker.put("q", b"\xff\r\nx", priority=7, delay=100, ttr=60)
        job = console.job(job_id)
        assert (job.id, job.queue, job.state, job.priority, job.ttr_s) == (job_id, "q", "delayed", 7, 60)
        assert job.age_s <= 1
        assert 98 <= job.time_left_s <= 100
        assert job.attempts.number == 1
        assert console.body(job_id) == b"\xff\r\nx"

    def test_missing_jobs_are_left_out_of_many(self, console, broker):
        ids = [broker.put("q", b"%d" % number) for number in range(1200)]
        console.delete_each(ids[::2])
        assert [job.id for job in console.jobs(ids)] == ids[1::2]
        assert console.bodies(ids) == {ids[number]: b"%d" % number for number in range(1, 1200, 2)}
        assert console.job(ids[0]) is None
        assert console.body(ids[0]) is None

    def test_only_a_buried_or_delayed_job_is_kicked(self, console, broker, connect, buried_without_story):
        reserved = broker.put("q", b"x")
        connect("q").ask([b"reserve-with-timeout 0\r\n"])
        [in_ground] = buried_without_story()
        delayed, ready = broker.put("q", b"x", delay=100), broker.put("q", b"x")
        assert console.kick_each([in_ground, reserved, delayed, ready, 999]) == [in_ground, delayed]
        assert [broker.job(job_id)["state"] for job_id in (in_ground, reserved, delayed)] == [
            "ready",
            "reserved",
            "ready",
        ]
        assert not console.kick(ready)

    def test_a_job_is_deleted_unless_a_worker_holds_it(self, console, broker, connect, buried_without_story):
        reserved = broker.put("q", b"x")
        connect("q").ask([b"reserve-with-timeout 0\r\n"])
        [in_ground] = buried_without_story()
        delayed, ready = broker.put("q", b"x", delay=100), broker.put("q", b"x")
        assert console.delete_each([in_ground, reserved, delayed, ready, 999]) == [in_ground, delayed, ready]
        assert broker.jobs() == 1
        assert not console.delete(reserved)

    def test_the_next_buried_job_is_the_one_that_was_buried_first(self, console, buried_without_story):
        first, second = buried_without_story(2)
        assert console.next_buried("q") == first
        console.kick(first)
        assert console.next_buried("q") == second

    def test_the_last_id_is_known_and_the_probe_leaves_nothing_behind(self, console, broker):
        assert console.last_id() == 0
        job_id = broker.put("q", b"x")
        assert console.last_id() == job_id
        console.next_ready_of(["q"])
        assert console.last_id() == job_id + 1  # the probe counts, too
        assert (broker.jobs(), broker.tube("default")["total-jobs"]) == (1, 0)
        assert [queue.name for queue in console.queues()] == ["q"]

    def test_a_server_that_refuses_jobs_knows_the_last_id_too(self, console, broker):
        job_id = broker.put("q", b"x")
        broker.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: console.last_id() == job_id, "it drains")

    def test_a_scan_finds_jobs_by_queue_and_state_from_the_newest_down(self, console, broker, buried_without_story):
        old = [broker.put("q", b"x") for _ in range(600)]
        broker.put("other", b"x")
        delayed = broker.put("q", b"x", delay=100)
        buried_without_story(1, "another")
        newest = console.last_id()
        steps = list(console.scan(newest, newest, ["q"], ["ready", "delayed"]))
        assert [seen for seen, _ in steps] == [500, newest]
        assert [job.id for _, found in steps for job in found] == [delayed, *reversed(old)]

    def test_a_scan_reads_at_most_the_given_number_of_ids(self, console, broker):
        ids = [broker.put("q", b"x") for _ in range(20)]
        [(seen, found)] = console.scan(console.last_id(), 5, ["q"], ["ready"])
        assert (seen, [job.id for job in found]) == (5, ids[:-6:-1])

    def test_an_unreachable_server_is_an_error_that_names_it(self, console, broker):
        broker.kill()
        with pytest.raises(BrokerConnectionError, match=str(broker.port)):
            console.queues()


class TestFailures:
    def test_stories_are_returned_newest_first_and_jobs_without_one_are_counted(
        self, console, buried, buried_without_story
    ):
        first, second = buried(2, endpoint="hello", exception="ValueError", message="no luck")
        buried_without_story(3)
        failures = console.failures("q")
        assert (jobs_of(failures), failures.untold, failures.count) == ([second, first], 3, 5)
        assert next(console.read_stories(failures.stories)).message == "no luck"

    def test_only_the_newest_of_many_are_returned_and_the_others_do_not_count_as_untold(
        self, console, buried, buried_without_story
    ):
        ids = [buried(1, buried_at=1_000_000_000 + number)[0] for number in range(10)]
        buried_without_story()
        failures = console.failures("q", limit=4)
        assert (jobs_of(failures), failures.untold, failures.unread) == (ids[:-5:-1], 1, 6)
        whole = console.failures("q")
        assert (jobs_of(whole), whole.untold, whole.unread) == (ids[::-1], 1, 0)

    def test_stories_beyond_the_limit_are_counted_even_if_all_others_are_stale(self, console, broker, buried):
        ids = [buried(1, buried_at=1_000_000_000 + number)[0] for number in range(5)]
        console.kick_each(ids[3:])
        failures = console.failures("q", limit=2)
        assert (jobs_of(failures), failures.unread, failures.is_empty) == ([], 3, False)
        assert jobs_of(console.failures("q", limit=2)) == ids[2:0:-1]

    def test_stories_are_read_in_full_in_the_same_order_without_those_that_are_gone(self, console, buried):
        ids = buried(120, message="no luck")
        stored = console.failures("q").stories
        console.delete(stored[60].id)
        told = list(console.read_stories(stored))
        assert [story.job for story in told] == [job_id for job_id in ids[::-1] if job_id != stored[60].job]
        assert {story.message for story in told} == {"no luck"}

    def test_a_reader_slower_than_the_ttr_of_the_notes_ends_and_deletes_none(
        self, broker, settings, buried_without_story, monkeypatch
    ):
        for job_id in buried_without_story(4):
            broker.put(TUBE, a_note(job_id).encode(), ttr=1)

        def read_slowly(body: bytes) -> Story:
            time.sleep(0.6)
            return Story.decode(body)

        monkeypatch.setattr(console_module, "decode_note", read_slowly)
        monkeypatch.setattr(notes, "AT_ONCE", 1)
        with Console(replace(settings, timeout_s=0.2)) as console:
            console.failures("q")
        wait_until(lambda: broker.count(TUBE, "ready") == 4, "all are there")

    def test_forged_names_are_cut_before_they_are_kept(self, console, broker, buried):
        [job_id] = buried()
        put_note(broker, a_note(job_id, exception="X" * 50_000))
        [stored] = console.failures("q").stories
        assert len(stored.kind) == 1000

    @pytest.mark.parametrize("fate", ["kicked", "deleted", "delayed", "taken elsewhere"])
    def test_the_story_of_a_job_that_is_no_longer_buried_is_deleted(self, console, broker, buried, connect, fate):
        [stays] = buried()
        [job_id] = buried()
        if fate == "deleted":
            console.delete(job_id)
        else:
            console.kick(job_id)
        if fate == "delayed":
            worker = connect("q")
            worker.release(reserve(worker).id, 0, 100)
        elif fate == "taken elsewhere":
            broker.take("q")
        assert broker.count(TUBE, "ready") == 2
        assert jobs_of(console.failures("q")) == [stays]
        assert broker.count(TUBE, "ready") == 1

    def test_a_job_that_was_buried_again_has_its_last_story_regardless_of_clocks(
        self, console, broker, buried, connect
    ):
        [job_id] = buried(1, message="before")
        console.kick(job_id)
        worker = connect("q")
        reserve(worker)
        bury(worker, a_note(job_id, message="after", buried_at=1_000_000_000), 0, StoryWriter(Mask()))
        assert [story.message for story in console.read_stories(console.failures("q").stories)] == ["after"]
        assert broker.count(TUBE, "ready") == 1

    def test_a_story_is_kept_while_its_job_is_held_since_it_is_written_before_the_job_is_buried(
        self, console, broker, connect
    ):
        job_id = broker.put("q", b"x")
        worker = connect("q")
        reserve(worker)
        put_note(broker, a_note(job_id))
        assert console.failures("q").count == 0
        worker.bury(job_id, 0)
        assert jobs_of(console.failures("q")) == [job_id]

    def test_foreign_jobs_beside_the_stories_stay_unchanged(self, console, broker, buried):
        ids = buried()
        note = a_note(999)
        strange = [
            b"",
            b"\xff",
            b"[" * 30_000,
            b"[]",
            b'{"job": 1}',
            replace(note, queue="other").encode(),
            *(replace(note, job=job).encode() for job in (-5, 0, 10**30, "7", None, 1.5)),
            *(replace(note, buried_at=at).encode() for at in (float("nan"), float("inf"), -1, 1e12, "noon")),
            *(
                json.dumps(json.loads(note.encode()) | {name: ["no text"]}).encode()
                for name in ("reason", "host", "endpoint", "exception")
            ),
            replace(note, death="sudden").encode(),
        ]
        left = {broker.put(TUBE, body, priority=7): body for body in strange}
        assert jobs_of(console.failures("q")) == ids
        assert console.bodies(left) == left
        assert {job.priority for job in console.jobs(left)} == {7}
        assert broker.count(TUBE, "ready") == len(strange) + 1

    def test_stories_are_available_again_as_soon_as_they_were_read(self, console, buried):
        buried(60)
        for _ in range(20):
            stories = console.failures("q").stories
            assert len(stories) == 60
            assert console.delete_each([stories[0].id]) == [stories[0].id]
            buried()

    def test_concurrent_readers_all_see_all(self, settings, buried):
        ids = buried(300)
        with ThreadPoolExecutor(4) as pool, Console(settings) as one, Console(settings) as two:
            consoles = [one, two, *(Console(settings) for _ in range(2))]
            for _ in range(5):
                for failures in pool.map(lambda console: console.failures("q"), consoles):
                    assert (jobs_of(failures), failures.untold) == (ids[::-1], 0)
            for console in consoles:
                console.__exit__(None, None, None)

    def test_a_stuck_reader_does_not_block_others_for_long(self, broker, settings, buried):
        ids = buried(5)
        stuck = Connection(settings.address, settings.timeout_s, watch=TUBE)
        stuck.ask([b"reserve-with-timeout 0\r\n"] * 2)
        with Console(replace(settings, timeout_s=0.2)) as console:
            failures = console.failures("q")
        assert (len(failures.stories), failures.untold) == (3, 2)
        stuck.close()
        with Console(settings) as console:
            assert jobs_of(console.failures("q")) == ids[::-1]

    def test_jobs_buried_during_a_look_never_count_as_untold(self, settings, buried):
        buried(20)
        with Console(settings) as console, ThreadPoolExecutor(1) as pool:
            worker = pool.submit(buried, 200)
            seen = [20]
            while not worker.done():
                failures = console.failures("q")
                assert failures.untold == 0
                seen.append(len(failures.stories))
            assert seen == sorted(seen)
            assert len(console.failures("q").stories) == 220

    def test_ten_thousand_stories_are_read(self, console, settings):
        settle = [b"put 0 0 60 2\r\n{}\r\n", b"reserve-with-timeout 0\r\n", b"bury %d 0\r\n"]
        with_story = 10_000
        worker = Connection(settings.address, settings.timeout_s, watch="q")
        worker.ask([b"use q\r\n"])
        ids = [int(reply.words[0]) for reply in worker.ask([settle[0]] * with_story)]
        worker.ask([settle[1]] * with_story)
        worker.ask([b"use %b\r\n" % TUBE.encode()])
        notes = [a_note(job_id, call="hello()" * 50, exception="ValueError").encode() for job_id in ids]
        worker.ask([b"put 0 0 60 %d\r\n%b\r\n" % (len(note), note) for note in notes])
        worker.ask([settle[2] % job_id for job_id in ids])
        failures = console.failures("q")
        assert (len(failures.stories), failures.untold) == (with_story, 0)
        assert len(act_on_failures(console, Action.RETRY, failures)) == with_story
        assert (console.queue("q").ready, console.failures("q").count) == (with_story, 0)
        worker.close()

    def test_stories_of_all_queues_are_found_and_deleted_where_nothing_is_buried(
        self, console, broker, buried, buried_without_story
    ):
        buried(2, "a")
        buried_without_story(1, "b")
        [kicked] = buried(1, "c")
        console.kick(kicked)
        broker.put("d", b"x")
        assert [(each.queue, len(each.stories), each.untold) for each in console.all_failures()] == [
            ("a", 2, 0),
            ("b", 0, 1),
        ]
        assert broker.is_empty(failures_tube("c"))

    def test_a_queue_that_our_workers_cannot_serve_has_no_stories(self, console, buried_without_story):
        names = ["q.failures", "x" * 200]
        for name in names:
            buried_without_story(1, name)
        assert [(console.failures(name).stories, console.failures(name).untold) for name in names] == [([], 1)] * 2
        assert [each.queue for each in console.all_failures()] == ["x" * 200]

    def test_they_are_grouped_by_queue_endpoint_and_kind_the_newest_first(self, console, buried):
        buried(2, "a", endpoint="hello", exception="ValueError", buried_at=1_000_000_000)
        [newest] = buried(1, "a", endpoint="hello", exception="ValueError", buried_at=1_000_000_003)
        buried(1, "a", endpoint="hello", death={"exit_signal": 9}, buried_at=1_000_000_001)
        buried(1, "b", endpoint="hello", exception="ValueError", buried_at=1_000_000_002)
        groups = group(console.all_failures())
        assert [(each.queue, each.endpoint, each.kind, len(each.stories)) for each in groups] == [
            ("a", "hello", "ValueError", 3),
            ("b", "hello", "ValueError", 1),
            ("a", "hello", "SIGKILL", 1),
        ]
        assert groups[0].newest.job == newest


class TestActing:
    def test_buried_and_delayed_jobs_run_now_and_their_stories_are_deleted(self, console, broker, buried):
        stays, goes = buried(2)
        delayed = broker.put("q", b"x", delay=100)
        acted = act_on_jobs(console, Action.RETRY, map(Target, [goes, delayed, goes]))
        assert (acted.done, acted.refused) == ([goes, delayed], {})
        assert {broker.job(job_id)["state"] for job_id in (goes, delayed)} == {"ready"}
        assert broker.count(TUBE, "ready") == 1
        assert jobs_of(console.failures("q")) == [stays]

    def test_jobs_that_cannot_be_retried_are_named_with_their_state(self, console, broker, connect, buried):
        reserved = broker.put("q", b"x")
        connect("q").ask([b"reserve-with-timeout 0\r\n"])
        [in_ground] = buried()
        ready = broker.put("q", b"x")
        note = console.failures("q").stories[0].id
        acted = act_on_jobs(console, Action.RETRY, map(Target, [999, reserved, in_ground, ready, note]))
        assert acted.done == [in_ground]
        assert acted.refused == {
            999: "gone",
            reserved: "reserved: it runs now",
            ready: "ready: it waits for a worker",
            note: "gone",  # deleted together with its job
        }

    def test_jobs_in_any_state_except_reserved_are_deleted_and_stories_only_with_their_job(
        self, console, broker, connect, buried
    ):
        reserved = broker.put("q", b"x")
        connect("q").ask([b"reserve-with-timeout 0\r\n"])
        stays, in_ground = buried(2)
        others = [broker.put("q", b"x"), broker.put("q", b"x", delay=100)]
        story = console.failures("q").stories[1]
        assert story.job == stays
        acted = act_on_jobs(console, Action.DELETE, map(Target, [in_ground, *others, reserved, story.id]))
        assert acted.done == [in_ground, *others]
        assert acted.refused == {
            reserved: "reserved: it runs now",
            story.id: "not a task's job but the story of a buried job",
        }
        assert (broker.jobs(), jobs_of(console.failures("q"))) == (3, [stays])

    def test_all_buried_jobs_of_a_queue_are_kicked_with_or_without_a_story_and_no_delayed_one(
        self, console, broker, buried, buried_without_story
    ):
        delayed = broker.put("q", b"x", delay=100)
        ids = [*buried(2), *buried_without_story(3), *buried(1)]
        assert sorted(act_on_failures(console, Action.RETRY, console.failures("q"))) == ids
        assert (broker.count("q", "ready"), broker.job(delayed)["state"]) == (6, "delayed")
        assert broker.is_empty(TUBE)

    def test_all_of_a_queue_are_deleted_and_no_other_job(self, console, broker, buried, buried_without_story):
        buried(2)
        buried_without_story(2)
        kept = {broker.put("q", b"x"), broker.put("q", b"x", delay=100), *buried(1, "other")}
        assert len(act_on_failures(console, Action.DELETE, console.failures("q"))) == 4
        assert {job.id for job in console.jobs(range(1, console.last_id()))} >= kept
        assert console.failures("q").count == 0

    def test_matching_jobs_are_chosen_and_none_without_a_story(self, console, buried, buried_without_story):
        wanted = buried(2, endpoint="hello", exception="requests.exceptions.ConnectionError")
        buried(1, endpoint="hello", exception="ValueError")
        buried_without_story()
        chosen = Pattern("hello/ConnectionError").choose(console.failures("q"))
        assert sorted(act_on_failures(console, Action.DELETE, chosen)) == wanted
        assert console.failures("q").count == 2

    def test_a_job_kicked_by_another_client_is_left_alone(self, console, broker, buried, buried_without_story):
        mine, theirs = buried(2)
        [untold] = buried_without_story()
        failures = console.failures("q")
        with broker.client("q") as client:
            client.kick_job(theirs)
            client.kick_job(untold)
        assert act_on_failures(console, Action.DELETE, failures) == [mine]
        assert {broker.job(job_id)["state"] for job_id in (theirs, untold)} == {"ready"}

    def test_a_job_that_is_buried_again_at_once_is_kicked_once(self, console, settings, buried, buried_without_story):
        ids = [*buried(5), *buried_without_story(7)]
        failures = console.failures("q")
        for _ in range(2):
            console.delete(ids.pop())  # in between
        worker = Connection(settings.address, settings.timeout_s, watch="q")
        is_over = threading.Event()

        def work() -> None:
            while not is_over.is_set():
                if job := reserve(worker, 0):
                    worker.bury(job.id, 0)

        thread = threading.Thread(target=work)
        thread.start()
        kicked = act_on_failures(console, Action.RETRY, failures)
        wait_until(lambda: console.queue("q").buried == 10, "all are buried again")
        is_over.set()
        thread.join()
        worker.close()
        assert sorted(kicked) == ids
        assert {job.kicks for job in console.jobs(ids)} == {1}


@pytest.mark.parametrize(
    ("pattern", "covers"),
    [
        ("hello", True),
        ("hel*", True),
        ("Hello", False),
        ("hell", False),
        ("hello/", True),
        ("/ConnectionError", True),
        ("/requests.exceptions.ConnectionError", True),
        ("/requests.*", True),
        ("/Connection*", True),
        ("/Error", False),
        ("hello/ConnectionError", True),
        ("h[aeiou]llo/*Error", True),
        ("other/ConnectionError", False),
        ("hello/ValueError", False),
        ("ConnectionError", False),
    ],
)
def test_a_pattern_covers_an_endpoint_an_exception_or_both(pattern, covers):
    note = a_note(1, endpoint="hello", exception="requests.exceptions.ConnectionError")
    assert Pattern(pattern).covers(note) is covers


@pytest.mark.parametrize("pattern", ["images/resize", "images/resize/OSError", "images/*", "/OSError", "images/*/OS*"])
def test_a_pattern_covers_an_endpoint_that_contains_a_slash(pattern):
    assert Pattern(pattern).covers(a_note(1, endpoint="images/resize", exception="OSError"))


def test_a_pattern_covers_crashes_and_failures_without_an_endpoint():
    assert Pattern("*/SIGSEGV").covers(a_note(1, endpoint="hello", death={"exit_signal": 11}))
    assert Pattern("/failed once").covers(a_note(1))
    assert not Pattern("hello").covers(a_note(1))
