"""The scheduler's ticks and its census on a broker, with a clock of this test."""

from __future__ import annotations

import json
import logging
import os
import select
import threading

import pytest
from support.waiting import wait_until

from flask_backend.broker.connection import Connection
from flask_backend.config import Address, Settings
from flask_backend.errors import BrokerConnectionError
from flask_backend.message import decode
from flask_backend.names import lock_tube, schedule_tube
from flask_backend.operations.schedules import ScheduleError, Schedules
from flask_backend.options import MAX_PRIORITY, PutOptions
from flask_backend.periodic import scheduler as scheduler_module
from flask_backend.periodic.definition import Definition
from flask_backend.periodic.keeping import put_token
from flask_backend.periodic.scheduler import Scheduler, Stop, Watch
from flask_backend.periodic.token import Release, Token
from flask_backend.periodic.when import Every

QUEUE, TUBE = "q", schedule_tube("q")
HOUR = 1_796_000_400  # a full hour
OLD, NEW = Release(HOUR - 100, "old"), Release(HOUR - 50, "new")
pytestmark = pytest.mark.skipif(not hasattr(select, "poll"), reason="needs poll")


def define(name="a", every=60, **policy) -> Definition:
    return Definition(name, QUEUE, "report", Every(every), **policy)


class Host:
    """A scheduler, stepped by the test, with its own clock."""

    def __init__(self, settings: Settings, *definitions: Definition, release: Release = OLD) -> None:
        self.now = float(HOUR)
        self.settings = settings
        self.connection = Connection(settings.address, 5, watch=TUBE)
        self.producer = Connection(settings.address, 5)
        self.watch = Watch(QUEUE, definitions)
        self.fired: list[tuple[str, int]] = []
        self.fails_at: int | None = None
        self.read_end, self.write_end = os.pipe()
        self.scheduler = Scheduler(
            settings, release, {TUBE: self.watch}, self.fire, Stop((self.read_end,)), clock=lambda: self.now
        )

    def fire(self, definition: Definition, slot: int, uid: str) -> int:
        if self.fails_at == len(self.fired):
            raise BrokerConnectionError("lost")
        self.fired.append((definition.name, slot - HOUR))
        return self.producer.put(QUEUE, definition.body(uid, slot), definition.options.resolve(120))

    def look(self) -> None:
        self.scheduler.look(self.connection, self.watch)

    def reserve(self):
        """Reserve the token, as if it were due."""
        self.connection.kick_job([job.id for job in self.connection.firsts(TUBE)])
        return next(iter(self.connection.reserve_ready(1)), None)

    def tick(self) -> float | None:
        """Act on the token, as if it were due."""
        due_at = None
        while (job := self.reserve()) is not None:
            before = len(self.fired)
            due_at = self.scheduler.tick(self.connection, job)
            if len(self.fired) == before:
                break
        return due_at

    def close(self) -> None:
        self.connection.close()
        self.producer.close()
        os.close(self.read_end)
        os.close(self.write_end)


@pytest.fixture
def settings(broker):
    return Settings(Address("127.0.0.1", broker.port))


@pytest.fixture
def host(settings):
    opened = []

    def host(*definitions, **options):
        opened.append(Host(settings, *definitions, **options))
        return opened[-1]

    yield host
    for each in opened:
        each.close()


def tokens(broker) -> list[Token]:
    """Return all tokens on the broker, which are taken and given back."""
    found = []
    with broker.client(TUBE) as client:
        ids = []
        for job_id in range(1, 200):
            try:
                job = client.peek(job_id)
            except Exception:  # noqa: S112  # greenstalk's own
                continue
            if client.stats_job(job_id)["tube"] == TUBE:
                ids.append(job_id)
                found.append(Token.decode(job.body))
    return found


def uids(broker) -> list[str]:
    with broker.client(QUEUE) as client:
        found = []
        while broker.count(QUEUE, "ready"):
            job = client.reserve(timeout=0)
            found.append(decode(job.body).headers["id"])
            client.delete(job)
    return found


def test_the_first_scheduler_puts_the_token_and_a_slot_is_scheduled_once(host, broker):
    one, two = host(define()), host(define())
    one.look()
    two.look()
    assert [token.number for token in tokens(broker)] == [1]
    assert one.tick() is None
    one.now = two.now = HOUR + 60.2
    two.tick()
    one.tick()
    assert two.fired == [("a", 60)]
    assert one.fired == []
    [token] = tokens(broker)
    assert (token.entries["a"].scheduled, token.entries["a"].missed) == (1, 0)
    assert uids(broker) == [define().uid(HOUR + 60)]


def test_the_rest_of_a_second_is_waited_for_without_holding_the_token(host, broker):
    one = host(define())
    one.look()
    one.now = HOUR + 59.4
    one.look()
    job = one.reserve()
    assert one.scheduler.tick(one.connection, job) == HOUR + 60
    assert broker.count(TUBE, "ready") == 1
    assert one.fired == []


def test_the_token_that_is_due_first_is_reserved_first(settings):
    """A scheduler of several queues must not wait for the rest of a second while calls of another queue are due."""
    other = Definition("b", "other", "report", Every(1))
    connection = Connection(settings.address, 5, watch=TUBE)
    connection.watch([schedule_tube("other")])
    now = HOUR + 0.5
    later = Token("other").with_release(OLD, [other], now)
    overdue = Token(QUEUE).with_release(OLD, [define()], now - 60)
    put_token(connection, later, now)
    put_token(connection, overdue, now)
    found = [Token.decode(job.body).queue for job in connection.reserve_ready(2)]
    assert found == [QUEUE, "other"]
    connection.close()


def test_a_token_that_the_census_has_made_ready_is_not_kept_waiting_by_another_one(host, settings):
    old, new = host(define("a"), release=OLD), host(define("b"), release=NEW)
    old.look()
    old.tick()
    second = Token("other").with_release(OLD, [Definition("c", "other", "report", Every(1))], HOUR)
    put_token(new.connection, second, HOUR + 0.5)
    new.connection.watch([schedule_tube("other")])
    new.look()
    job = new.scheduler._reserve_kicked(new.connection)
    assert job is not None
    assert Token.decode(job.body).queue == QUEUE
    assert new.scheduler._reserve_kicked(new.connection) is None


def test_a_death_between_the_writes_loses_no_slot(host, broker):
    """Between the calls and the new token; and between the new token and the delete of the old one."""
    one, two = host(define(), define("b")), host(define(), define("b"))
    one.look()
    one.tick()
    one.now = two.now = HOUR + 60
    one.fails_at = 1  # after the first of two calls
    with pytest.raises(BrokerConnectionError):
        one.tick()
    two.tick()
    assert (one.fired, two.fired) == ([("a", 60)], [("b", 60)])
    # The old token is back beside the new one: the higher number counts.
    [token] = tokens(broker)
    with broker.client(TUBE) as client:
        client.put(Token(QUEUE, token.number - 1, token.release, token.entries).encode())
    two.now = HOUR + 120
    two.tick()
    two.tick()
    assert two.fired == [("b", 60), ("a", 120), ("b", 120)]
    assert len(tokens(broker)) == 1


def test_a_death_before_the_new_token_schedules_again_with_the_same_id_and_a_warning(host, broker, caplog):
    one, two = host(define()), host(define())
    one.look()
    one.tick()
    one.now = two.now = HOUR + 60
    one.look()
    job = one.reserve()
    one.fire(define(), HOUR + 60, define().uid(HOUR + 60))
    one.connection.close()
    with caplog.at_level(logging.WARNING, "flask_backend.periodic"):
        two.tick()
    assert job is not None
    assert "a scheduler died while it held the periodic tasks of q" in caplog.text
    assert len(set(uids(broker))) == 1


def test_a_second_token_that_another_one_holds_is_waited_for_and_resolved(host, broker, monkeypatch):
    one, two = host(define()), host(define())
    one.look()
    with broker.client(TUBE) as client:
        client.put(tokens(broker)[0].encode(), priority=MAX_PRIORITY)
    one.now = two.now = HOUR + 60
    first, second = one.reserve(), two.reserve()
    assert one.scheduler.tick(one.connection, first) is None
    assert two.scheduler.tick(two.connection, second) is None
    assert one.fired == two.fired == []
    one.connection.kick_job([first.id, second.id])
    one.tick()
    assert one.fired == [("a", 60)]
    assert len(tokens(broker)) == 1
    # A holder that has vanished is not waited for any longer than this.
    monkeypatch.setattr(scheduler_module, "UNCLEAR_S", -1)
    with broker.client(TUBE) as client:
        ghost = client.put(tokens(broker)[0].encode(), ttr=1000)
        two.connection.reserve_job(ghost)
        one.now = HOUR + 120
        one.tick()
        assert one.fired[-1] == ("a", 120)


def test_a_server_that_lost_its_memory_gets_the_newest_token_again(host, broker, settings, caplog):
    one, two = host(define()), host(define())
    one.look()
    one.tick()
    with Schedules(settings) as schedules:
        schedules.pause(QUEUE, "a")
    one.look()
    two.look()
    number = tokens(broker)[0].number
    for each in (one, two):
        each.connection.close()
    broker.kill()
    broker.start()
    for each in (one, two):
        each.connection = Connection(each.settings.address, 5, watch=TUBE)
    with caplog.at_level(logging.WARNING, "flask_backend.periodic"):
        two.look()
        one.look()
    [token] = tokens(broker)
    assert (token.number, token.entries["a"].is_paused) == (number + 1, True)
    assert "the state of the periodic tasks of q was lost" in caplog.text


def test_an_older_token_put_again_gives_way_to_the_newest_one_known(host, broker):
    one, two = host(define()), host(define())
    one.look()
    two.look()
    old = tokens(broker)[0]
    one.now = two.now = HOUR + 60
    one.tick()
    [job_id] = [job.id for job in one.connection.firsts(TUBE)]
    one.connection.delete_each([job_id])
    two.watch.newest = old
    two.look()
    assert tokens(broker)[0].number == old.number + 1
    one.watch.newest = Token(QUEUE, old.number + 5, OLD, one.watch.newest.entries)
    one.look()
    two.tick()
    two.tick()
    [token] = tokens(broker)
    assert token.entries["a"].scheduled == 1
    assert two.fired == []


def test_a_body_that_is_no_token_is_replaced_and_logged(host, broker, caplog):
    one = host(define())
    broker.put(TUBE, b'{"what": "is this"}')
    one.look()
    one.tick()
    one.tick()
    assert len(tokens(broker)) == 1
    assert "not the state of periodic tasks" in caplog.text
    assert "what" in caplog.text


def test_the_release_that_was_loaded_last_writes_and_the_other_one_fires_what_it_says(host):
    old, new = host(define("a"), release=OLD), host(define("a", 30), define("b", 30), release=NEW)
    old.look()
    new.look()  # kicks the token of the older release
    new.tick()
    old.look()
    old.now = new.now = HOUR + 30
    old.tick()
    assert old.fired == [("a", 30), ("b", 30)]
    old.now = HOUR + 60
    old.tick()
    assert old.fired[2:] == [("a", 60), ("b", 60)]


@pytest.mark.parametrize("state", ["ready", "reserved", "delayed", "buried"])
def test_calls_do_not_overlap_and_buried_is_finished(host, broker, state):
    one = host(define(overlap=False))
    one.look()
    one.tick()
    one.now = HOUR + 60
    one.tick()
    with broker.client(QUEUE) as client:
        if state != "ready":
            job = client.reserve(timeout=0)
        if state == "delayed":
            client.release(job, delay=1000)
        elif state == "buried":
            client.bury(job)
        one.now = HOUR + 120
        one.tick()
    [token] = tokens(broker)
    found = token.entries["a"]
    if state == "buried":
        assert (found.scheduled, found.skipped) == (2, 0)
    else:
        assert (found.scheduled, found.skipped) == (1, 1)
        for job in one.producer.peek(range(1, 100)):
            one.producer.delete_each([job] if broker.job(job)["tube"] == QUEUE else [])
        one.now = HOUR + 180
        one.tick()
        assert tokens(broker)[0].entries["a"].scheduled == 2


def test_another_job_with_the_id_of_the_last_call_is_no_overlap(host, broker):
    one = host(define(overlap=False))
    one.look()
    one.tick()
    one.now = HOUR + 60
    one.tick()
    [token] = tokens(broker)
    job = token.entries["a"].job
    assert uids(broker)
    other = broker.put(QUEUE, b'{"endpoint": "report", "headers": {"id": "other"}}')
    [held] = one.connection.firsts(TUBE)
    body = held.body.replace(b'"job":%d' % job, b'"job":%d' % other)
    one.connection.delete_each([held.id])
    one.connection.put(TUBE, body, PutOptions(1, 0, 60))
    one.watch.newest = Token.decode(body)
    one.now = HOUR + 120
    one.tick()
    assert tokens(broker)[0].entries["a"].scheduled == 2


def test_clocks_that_step_forth_and_back(host):
    one, two = host(define()), host(define())
    one.look()
    one.tick()
    one.now = HOUR + 60
    one.tick()
    one.now = HOUR + 1000  # forth, on one host only
    one.tick()
    assert one.fired == [("a", 60), ("a", 960)]
    two.now = HOUR + 120  # the right time: nothing twice
    two.tick()
    one.now = HOUR + 900
    one.tick()
    assert (len(one.fired), two.fired) == (2, [])
    two.now = HOUR + 1020
    two.tick()
    assert two.fired == [("a", 1020)]
    two.now = HOUR + 1020 - 86400  # back by a day, for ever
    two.tick()
    two.now += 61
    two.tick()
    assert two.fired[1:] == [("a", 1020 + 60 - 86400)]


def test_a_token_that_waits_for_a_clock_of_the_server_is_made_ready(host, broker):
    one = host(define())
    one.look()
    job = one.reserve()
    one.connection.release(job.id, 1, 7200)  # as if the server's clock had been set back by two hours
    one.look()
    assert broker.count(TUBE, "ready") == 1


def test_a_buried_token_is_made_ready(host, broker):
    one = host(define())
    one.look()
    one.connection.bury(one.reserve().id, 1)
    one.look()
    assert broker.count(TUBE, "ready") == 1


def test_a_token_whose_holder_vanished_is_put_again(host, broker, monkeypatch):
    one, two = host(define()), host(define())
    one.look()
    two.look()
    assert one.reserve()
    two.look()
    assert len(tokens(broker)) == 1
    monkeypatch.setattr(scheduler_module, "LOST_S", -1)
    two.look()
    assert len(tokens(broker)) == 2
    two.watch.unclear_since = float("-inf")
    two.now = HOUR + 60
    two.tick()
    assert two.fired == [("a", 60)]


def test_a_lock_of_a_dead_candidate_ends_by_its_age(host, broker, monkeypatch):
    one = host(define())
    one.connection.put_aside(lock_tube(TUBE), b"", 0)
    one.look()
    assert tokens(broker) == []
    monkeypatch.setattr("flask_backend.broker.election.MAX_LOCK_AGE_S", -1)
    one.look()
    assert len(tokens(broker)) == 1


def test_a_token_that_the_server_would_not_take_keeps_the_old_definitions(host, broker, caplog):
    one = host(define())
    one.look()
    many = [define(f"n{number}", args=["x" * 3000]) for number in range(25)]
    two = host(*many, release=NEW)
    two.look()
    two.tick()
    one.now = HOUR + 60
    one.tick()
    assert one.fired == [("a", 60)]
    assert "and the server takes 65535 in one job: shorten their arguments" in caplog.text
    assert list(tokens(broker)[0].entries) == ["a"]


def test_a_call_that_hangs_in_the_code_of_the_app_is_named_before_the_process_is_killed(host, caplog, monkeypatch):
    one = host(define("a"))
    monkeypatch.setattr(scheduler_module.signal, "getitimer", lambda _: (1.5, 0.0))  # until the kill

    def hangs(_definition, _slot, _uid):
        wait_until(lambda: "app's middleware" in caplog.text, "a line that names the call")
        return 1

    one.scheduler.fire = hangs
    one.look()
    one.tick()
    one.now = HOUR + 60
    one.tick()
    assert "the call of the periodic task a of q takes longer than 20 s in the app's middleware" in caplog.text
    assert "in hangs" in caplog.text
    assert "\n" not in caplog.messages[-1]  # the formatters escape what is in the message, and not the stack


def test_a_queue_at_which_schedulers_die_lets_the_other_queues_go_first(host, broker):
    one = host(define("a"))
    one.look()
    one.tick()
    one.now = HOUR + 60
    for _ in range(2):
        dying = Connection(one.settings.address, 5, watch=TUBE)
        [job] = dying.firsts(TUBE)
        assert dying.reserve_job(job.id)
        dying.close()
        wait_until(lambda: broker.count(TUBE, "ready") == 1, "the server has given the token back")
    one.scheduler.watches = {**one.scheduler.watches, schedule_tube("other"): Watch("other", ())}
    assert one.scheduler.tick(one.connection, one.reserve()) is None
    assert one.fired == []
    assert broker.count(TUBE, "delayed") == 1
    one.tick()
    assert one.fired == [("a", 60)]


def test_code_of_the_app_that_raises_counts_as_missed_and_the_others_are_scheduled(host, broker, caplog):
    one = host(define("a"), define("b"))
    fire = one.fire

    def raises(definition, slot, uid):
        if definition.name == "a":
            raise ZeroDivisionError
        return fire(definition, slot, uid)

    one.scheduler.fire = raises
    one.look()
    one.tick()
    one.now = HOUR + 60
    one.tick()
    entries = tokens(broker)[0].entries
    assert (entries["a"].missed, entries["b"].scheduled) == (1, 1)
    assert "the app's code raised" in caplog.text


def test_reading_changes_nothing_and_run_pause_and_resume_act(host, broker, settings):
    one = host(define(overlap=False), define("b", 30))
    one.look()
    one.tick()
    before = [token.encode() for token in tokens(broker)]
    with Schedules(settings) as schedules:
        [queue] = schedules.queues()
        assert [token.encode() for token in tokens(broker)] == before
        assert (queue.name, queue.schedulers) == (QUEUE, 1)
        a, _ = queue.schedules
        assert (a.name, a.words, a.next, a.last, a.overlap) == ("a", "Every minute", HOUR + 60, None, False)
        started = schedules.run(QUEUE, "a")
        assert json.loads(broker.peek(started.job))["headers"]["id"] == started.uid
        with pytest.raises(ScheduleError, match=f"job {started.job}, the last call of a, is unfinished"):
            schedules.run(QUEUE, "a")
        assert schedules.pause(QUEUE, "b").is_paused
        one.now = HOUR + 60
        one.tick()
        assert one.fired == []  # one overlaps, the other one is paused
        assert schedules.find("b").next is None
        assert not schedules.resume(QUEUE, "b").is_paused
        for name, where in (("c", None), ("a", "elsewhere")):
            with pytest.raises(ScheduleError, match="there is no periodic task"):
                schedules.find(name, where)
        with pytest.raises(ScheduleError, match="there is no periodic task 'c' on q"):
            schedules.pause(QUEUE, "c")
        with pytest.raises(ScheduleError, match="there are no periodic tasks on elsewhere"):
            schedules.pause("elsewhere", "a")
    assert len(tokens(broker)) == 1


def test_a_retired_one_cannot_be_run(host, settings):
    one = host(define(), define("b"))
    one.look()
    new = host(define("b"), release=NEW)
    new.look()
    new.tick()
    with Schedules(settings) as schedules:
        [queue] = schedules.queues([QUEUE])
        assert [each.is_retired for each in queue.schedules] == [True, False]
        with pytest.raises(ScheduleError, match="is not in the newest release"):
            schedules.run(QUEUE, "a")


def test_a_queue_without_schedulers_is_shown_with_none(host, settings):
    one = host(define())
    one.look()
    one.connection.close()
    with Schedules(settings) as schedules:
        assert schedules.queues()[0].schedulers == 0


@pytest.fixture
def serving(settings):
    """A scheduler of two queues that serves in a thread, by the real clock."""
    fired: list[tuple[str, int]] = []
    read_end, write_end = os.pipe()
    watches = {
        schedule_tube(queue): Watch(queue, [Definition("a", queue, "report", Every(1))]) for queue in ("one", "two")
    }

    def fire(definition: Definition, slot: int, _uid: str) -> int:
        fired.append((definition.queue, slot))
        return 1

    scheduler = Scheduler(settings, Release.now(1.0), watches, fire, Stop((read_end,)))
    thread = threading.Thread(target=scheduler.run)
    thread.start()

    def stop() -> None:
        os.write(write_end, b"x")
        thread.join(10)
        assert not thread.is_alive()

    yield fired, stop
    stop()
    os.close(read_end)
    os.close(write_end)


def test_one_scheduler_serves_two_queues_waits_for_the_broker_and_stops_at_once(serving, broker, caplog):
    fired, stop = serving
    wait_until(lambda: {queue for queue, _ in fired} == {"one", "two"}, "both are served")
    broker.kill()
    wait_until(lambda: "periodic tasks wait for the broker" in caplog.text, "it says so")
    broker.start()
    count = len(fired)
    wait_until(lambda: {queue for queue, _ in fired[count:]} == {"one", "two"}, "both go on")
    assert "connected to the broker again" in caplog.text
    assert len(fired) - len(set(fired)) <= 1  # of the tick in which the broker died
    slots = sorted(slot for queue, slot in fired if queue == "one")
    assert slots == list(range(slots[0], slots[-1] + 1))  # none was left out
    stop()
    with broker.client() as client:
        assert [tube for tube in client.tubes() if client.stats_tube(tube)["current-jobs-reserved"]] == []
