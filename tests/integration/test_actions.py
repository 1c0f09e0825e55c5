"""What a page or a command does to jobs: only to those that the person saw."""

from __future__ import annotations

import json
import time

import pytest
from support.reserving import reserve
from support.stories import a_note, bury_many, put_note

from flask_backend.broker.connection import Connection
from flask_backend.config import Address, Settings
from flask_backend.names import failures_tube
from flask_backend.operations.actions import (
    ANOTHER_JOB,
    Action,
    Selection,
    Target,
    act_on_jobs,
    act_on_selection,
    mark_of,
)
from flask_backend.operations.console import Console
from flask_backend.operations.failures import Pattern
from flask_backend.operations.listing import LOOKED_UP, list_jobs, list_stories
from flask_backend.operations.recent import StoryReader

TUBE = failures_tube("q")


@pytest.fixture
def settings(broker):
    return Settings(Address("127.0.0.1", broker.port))


@pytest.fixture
def console(settings):
    with Console(settings) as opened:
        yield opened


def a_call(uid: str, endpoint: str = "hello") -> bytes:
    return json.dumps({"endpoint": endpoint, "headers": {"id": uid}}).encode()


def seen(console, job_id: int, **more) -> Target:
    [(record, body)] = console.jobs_with_bodies([job_id]).values()
    return Target(job_id, record.queue, mark_of(body), **more)


class TestOneJob:
    def test_it_is_affected_if_it_is_still_the_one_that_was_seen(self, settings, console, broker):
        [job_id] = bury_many(settings, "q", 1, a_call("one"))
        result = act_on_jobs(console, Action.RETRY, [seen(console, job_id)])
        assert (result.done, result.refused) == ([job_id], {})
        assert broker.job(job_id)["state"] == "ready"
        assert broker.count(TUBE, "ready") == 0

    @pytest.mark.parametrize("action", list(Action))
    @pytest.mark.parametrize("body", [a_call("two"), b"\x00\xff another body", b'{"endpoint": "hello"}'])
    def test_another_job_with_its_id_after_a_restart_of_the_broker_is_refused(self, broker, settings, action, body):
        job_id = broker.put("q", a_call("one"))
        with Console(settings) as console:
            target = seen(console, job_id)
        broker.stop()
        broker.start()
        assert broker.put("q", body, delay=100) == job_id
        with Console(settings) as console:
            result = act_on_jobs(console, action, [target])
        assert (result.done, result.refused) == ([], {job_id: ANOTHER_JOB})
        assert broker.job(job_id)["state"] == "delayed"

    def test_the_same_call_in_another_queue_is_another_job(self, console, broker):
        job_id = broker.put("q", b"x", delay=100)
        result = act_on_jobs(console, Action.DELETE, [Target(job_id, "other", mark_of(b"x"))])
        assert result.refused == {job_id: ANOTHER_JOB}

    def test_jobs_in_the_wrong_state_are_refused_with_the_reason(self, settings, console, broker):
        ready, [in_ground] = broker.put("q", b"x"), bury_many(settings, "q", 1)
        reserved = broker.put("r", b"x")
        worker = Connection(settings.address, settings.timeout_s, watch="r")
        reserve(worker)
        note = broker.put(TUBE, b"x")
        targets = [seen(console, each) for each in (ready, in_ground, reserved, note)] + [Target(999, "q", "x")]
        told = {
            ready: "ready: it waits for a worker",
            reserved: "reserved: it runs now",
            note: "not a task's job but the story of a buried job",
            999: "gone",
        }
        assert act_on_jobs(console, Action.RETRY, [each for each in targets if each.id != in_ground]).refused == told
        cancelled = act_on_jobs(console, Action.CANCEL, targets)
        assert cancelled.done == [ready]
        assert cancelled.refused[in_ground] == "buried: it does not wait, but can be deleted"
        worker.close()

    def test_only_its_own_story_is_deleted_whatever_note_a_page_names(self, settings, console, broker):
        one, two = bury_many(settings, "q", 2)
        notes = {story.job: story.id for story in console.failures("q").stories}
        wrong = seen(console, one, note=notes[two])
        assert act_on_jobs(console, Action.DELETE, [wrong]).done == [one]
        assert [story.job for story in console.failures("q").stories] == [two]
        assert act_on_jobs(console, Action.DELETE, [seen(console, two, note=notes[two])]).done == [two]
        assert broker.is_empty(TUBE)

    def test_a_delayed_job_of_an_internal_tube_is_not_started(self, console, broker):
        job_id = broker.put("q.schedule", b"{}", delay=100)
        assert act_on_jobs(console, Action.RETRY, [seen(console, job_id)]).done == []
        assert broker.job(job_id)["state"] == "delayed"


def test_a_mark_is_the_uid_of_a_call_or_a_digest_that_a_form_can_carry():
    assert mark_of(a_call("0123456789abcdef")) == "0123456789abcdef"
    hostile = [
        b"",
        b"\x00",
        b"[" * 10_000,
        a_call("x" * 65),
        a_call('"><script>'),
        a_call("sha256:x"),
        b'{"endpoint":"x"}',
    ]
    marks = [mark_of(body) for body in hostile]
    assert len(set(marks)) == len(hostile)
    assert {len(mark) for mark in marks} == {len("sha256:") + 64}
    assert mark_of(json.dumps({"endpoint": "x", "headers": {"id": 7}}).encode()).startswith("sha256:")


class TestAllThatMatch:
    def group(self, console) -> Selection:
        stories = [each for each in console.failures("q").stories if each.kind == "ValueError"]
        return Selection.of(stories, "q", group=(None, "ValueError"))

    def test_only_those_of_the_time_of_the_question_are_affected(self, settings, console, broker):
        asked_about = bury_many(settings, "q", 5, exception="ValueError")
        bury_many(settings, "q", 2, exception="KeyError")
        selection = self.group(console)
        later = bury_many(settings, "q", 3, exception="ValueError")
        progress = act_on_selection(console, Action.RETRY, selection)
        assert (sorted(progress.done), progress.is_finished) == (asked_about, True)
        assert {broker.job(job_id)["state"] for job_id in later} == {"buried"}
        assert broker.count(TUBE, "ready") == 5

    def test_a_job_that_was_buried_again_since_the_question_is_left_alone(self, settings, console, broker):
        [job_id] = bury_many(settings, "q", 1, exception="ValueError", buried_at=lambda _: 1_000_000_000)
        selection = self.group(console)
        put_note(broker, a_note(job_id, exception="ValueError"))
        assert act_on_selection(console, Action.DELETE, selection).done == []
        assert broker.job(job_id)["state"] == "buried"

    def test_new_failures_after_a_restart_of_the_broker_are_left_alone(self, broker, settings):
        with Console(settings) as console:
            bury_many(settings, "q", 20, exception="ValueError", buried_at=lambda n: 1_000_000_000 + n)
            selection = self.group(console)
        broker.stop()
        broker.start()
        bury_many(settings, "q", 1, exception="ValueError")
        with Console(settings) as console:
            assert act_on_selection(console, Action.DELETE, selection).done == []

    def test_many_are_done_in_chunks_until_it_is_finished(self, settings, console, broker):
        bury_many(settings, "q", 25, exception="KeyError")
        ids = bury_many(settings, "q", 1100, exception="ValueError")
        selection, done, calls = self.group(console), [], 0
        while True:
            progress = act_on_selection(console, Action.RETRY, selection, limit=500)
            done += progress.done
            calls += 1
            assert len(progress.done) <= 500
            if progress.is_finished:
                break
        assert (sorted(done), calls) == (ids, 3)
        assert (broker.count("q", "ready"), broker.count("q", "buried")) == (1100, 25)
        assert broker.count(TUBE, "ready") == 25

    def test_all_queues_are_searched_by_a_pattern_that_covers_none_without_a_story(self, settings, console, broker):
        ids = [bury_many(settings, name, 2, endpoint="mail", exception="E")[0] for name in ("a", "b")]
        bury_many(settings, "b", 1, endpoint="other", exception="E")
        with broker.client("a") as client:
            client.put(b"{}")
            client.bury(client.reserve())
        stories = [story for each in StoryReader().read(console).failures for story in each.stories]
        selection = Selection.of(stories, pattern=Pattern("mail"))
        assert set(act_on_selection(console, Action.DELETE, selection).done) >= set(ids)
        assert (broker.count("a", "buried"), broker.count("b", "buried")) == (1, 1)

    def test_stale_stories_are_skipped_and_deleted(self, settings, console, broker):
        one, two = bury_many(settings, "q", 2, exception="ValueError")
        selection = self.group(console)
        with broker.client("q") as client:
            client.kick_job(one)
        progress = act_on_selection(console, Action.RETRY, selection)
        assert (progress.done, progress.skipped) == ([two], 1)
        assert broker.is_empty(TUBE)

    def test_stories_that_others_hold_leave_it_unfinished_and_without_end_it_is_stuck(self, settings, console):
        bury_many(settings, "q", 3, exception="ValueError")
        selection = self.group(console)
        other = Connection(settings.address, settings.timeout_s, watch=TUBE)
        other.reserve_ready(1)
        first = act_on_selection(console, Action.RETRY, selection)
        assert (len(first.done), first.unread, first.is_finished, first.is_stuck) == (2, 1, False, False)
        assert act_on_selection(console, Action.RETRY, selection).is_stuck
        other.quit()
        last = act_on_selection(console, Action.RETRY, selection)
        assert (len(last.done), last.is_finished) == (1, True)

    def test_an_empty_selection_affects_nothing(self, settings, console):
        bury_many(settings, "q", 1)
        assert act_on_selection(console, Action.DELETE, Selection.of([])).done == []


class TestLists:
    def test_jobs_are_listed_newest_first_without_writing(self, console, broker):
        ids = [broker.put("q", b"%d" % number) for number in range(60)]
        broker.put("other", b"x")
        with broker.client() as client:
            before = client.stats()
            page = list_jobs(console, "q", ["ready"], most=50)
            after = client.stats()
        assert {name for name in before if name.startswith("cmd-") and before[name] != after[name]} <= {
            *("cmd-peek-ready", "cmd-peek-delayed", "cmd-peek-buried", "cmd-peek", "cmd-stats", "cmd-stats-job"),
            *("cmd-stats-tube", "cmd-use"),
        }
        assert [record.id for record, _ in page.jobs] == ids[:9:-1]
        assert page.jobs[0][1] == b"59"
        assert (page.counted, page.looked_up <= LOOKED_UP) == (60, True)
        rest = list_jobs(console, "q", ["ready"], before=page.before, most=50)
        assert [record.id for record, _ in rest.jobs] == ids[9::-1]
        assert rest.before is None

    def test_each_view_looks_up_a_bounded_number_of_ids(self, console, broker, settings):
        old = broker.put("q", b"old")
        connection = Connection(settings.address, settings.timeout_s)
        connection.ask([b"use other\r\n"])
        connection.ask([b"put 0 0 60 1\r\nx\r\n"] * 5000)
        connection.close()
        before, views = None, []
        while True:
            page = list_jobs(console, "q", ["ready"], before)
            views.append(page)
            before = page.before
            if before is None:
                break
        assert [record.id for page in views for record, _ in page.jobs] == [old]
        assert max(page.looked_up for page in views) <= LOOKED_UP
        assert 3 <= len(views) <= 5

    def test_the_newest_job_is_found_although_the_server_has_read_its_binlog(self, durable_broker):
        settings = Settings(Address("127.0.0.1", durable_broker.port))
        connection = Connection(settings.address, settings.timeout_s)
        connection.ask([b"use q\r\n"])
        connection.ask([b"put 0 0 60 1\r\nx\r\n"] * 3000)
        connection.close()
        durable_broker.stop()
        durable_broker.start()
        newest = durable_broker.put("q", b"new", delay=1000)
        with Console(settings) as console:
            page = list_jobs(console, "q", ["ready", "delayed"])
        assert page.jobs[0][0].id == newest
        assert len(page.jobs) == 50

    def test_an_empty_queue_needs_no_search(self, console):
        page = list_jobs(console, "absent", ["ready"])
        assert (page.jobs, page.looked_up, page.before) == ([], 0, None)

    def test_stories_beyond_the_newest_are_found_by_their_ids_without_reserving_them(self, settings, console, broker):
        ids = bury_many(settings, "q", 120, exception="ValueError")
        bury_many(settings, "q", 10, exception="KeyError")
        newest = max(story.id for story in console.failures("q").stories)
        found, before = [], newest + 1
        while before is not None:
            page = list_stories(console, "q", lambda story: story.kind == "ValueError", before)
            found += page.stories
            before = page.before
        assert [story.job for story in found] == ids[::-1]
        assert broker.tube(TUBE)["current-jobs-ready"] == 130

    def test_stories_of_other_groups_do_not_make_a_view_long(self, settings, console):
        bury_many(settings, "q", 1, exception="Rare")
        bury_many(settings, "q", 1200, exception="Often")
        before = max(story.id for story in console.failures("q").stories) + 1
        found, slowest_s = [], 0.0
        while before is not None:
            began = time.process_time()
            page = list_stories(console, "q", lambda story: story.kind == "Rare", before)
            slowest_s = max(slowest_s, time.process_time() - began)
            found += page.stories
            before = page.before
        assert [story.kind for story in found] == ["Rare"]
        assert slowest_s < 0.5
