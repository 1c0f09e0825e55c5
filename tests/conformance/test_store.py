"""The decisions of the embedded broker, with a clock that the test moves."""

from __future__ import annotations

import pytest

from flask_backend.embedded.ordered import Ordered
from flask_backend.embedded.store import NoJob, State, Store


class Clock:
    """A store, and the time at which its methods are called."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.store = Store()

    def tick(self, seconds: float) -> list:
        """Move the clock; return the results for waiting clients."""
        self.now += seconds
        self.store.advance(self.now)
        return self.answers()

    def answers(self) -> list:
        answers = list(self.store.answers)
        self.store.answers.clear()
        return answers

    def put(self, client, *, priority=0, delay_s=0, ttr_s=10):
        return self.store.put(client, priority, delay_s, ttr_s, b"", self.now)

    def reserve(self, client, timeout_s=0):
        return self.store.reserve(client, timeout_s, self.now)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def client(clock):
    return clock.store.connect()


@pytest.fixture
def other(clock):
    return clock.store.connect()


def test_nothing_happens_by_itself_in_an_empty_store(clock, client):
    assert clock.store.next_at() is None
    assert clock.put(client).state is State.READY
    assert clock.store.next_at() is None


def test_a_delayed_job_is_ready_when_it_is_due_and_not_before(clock, client):
    job = clock.put(client, delay_s=5)
    assert clock.store.next_at() == 1005
    clock.tick(4.999)
    assert (job.state, clock.reserve(client)) == (State.DELAYED, NoJob.TIMED_OUT)
    clock.tick(0.001)
    assert clock.reserve(client) is job


def test_a_delay_of_136_years_is_kept(clock, client):
    job = clock.put(client, delay_s=2**32 - 1)
    clock.tick(2**32 - 2)
    assert job.state is State.DELAYED
    clock.tick(1)
    assert job.state is State.READY


def test_a_job_whose_time_is_over_is_counted_and_goes_to_a_waiting_client(clock, client, other):
    job = clock.put(client, ttr_s=10)
    clock.reserve(client)
    assert clock.reserve(other, timeout_s=None) is None
    assert clock.tick(9.999) == []
    assert clock.tick(0.001) == [(other, job)]
    assert (job.timeouts, job.holder, clock.store.timeouts) == (1, other, 1)
    assert not clock.store.touch(client, job.id, clock.now)
    assert not clock.store.delete(client, job.id)


def test_a_job_whose_time_is_over_can_be_deleted_by_its_old_holder_until_another_takes_it(clock, client):
    job = clock.put(client, ttr_s=10)
    clock.reserve(client)
    clock.tick(10)
    assert not clock.store.release(client, job.id, 0, 0, clock.now)
    assert not clock.store.bury(client, job.id, 0, clock.now)
    assert clock.store.delete(client, job.id)


def test_touches_keep_a_job_indefinitely(clock, client):
    job = clock.put(client, ttr_s=10)
    clock.reserve(client)
    for _ in range(100):
        clock.tick(9.9)
        assert clock.store.touch(client, job.id, clock.now)
    assert (job.state, job.timeouts) == (State.RESERVED, 0)
    assert clock.store.next_at() == clock.now + 10


def test_a_waiting_holder_is_warned_one_second_before_the_first_held_job_runs_out_of_time(clock, client):
    clock.put(client, ttr_s=20)
    clock.put(client, ttr_s=10)
    clock.reserve(client)
    clock.reserve(client)
    assert clock.reserve(client, timeout_s=None) is None
    assert clock.tick(8.9) == []
    assert clock.tick(0.1) == [(client, NoJob.DEADLINE_SOON)]
    assert clock.reserve(client) is NoJob.DEADLINE_SOON
    clock.tick(1)
    assert clock.reserve(client).ttr_s == 10


def test_a_wait_ends_at_its_own_end_if_that_comes_first(clock, client):
    clock.put(client, ttr_s=20)
    clock.reserve(client)
    assert clock.reserve(client, timeout_s=3) is None
    assert clock.tick(2.9) == []
    assert clock.tick(0.1) == [(client, NoJob.TIMED_OUT)]
    assert not client.is_waiting


def test_waiting_clients_get_jobs_in_order_of_arrival(clock):
    clients = [clock.store.connect() for _ in range(3)]
    for client in clients:
        clock.reserve(client, timeout_s=None)
    jobs = [clock.put(clients[0], delay_s=delay_s) for delay_s in (1, 2, 3)]
    assert clock.tick(3) == list(zip(clients, jobs, strict=True))


def test_a_client_without_a_job_gets_none_of_a_paused_tube(clock, client, other):
    clock.store.use(client, "a")
    clock.store.watch(other, "a")
    clock.store.pause("a", 5, clock.now)
    clock.reserve(other, timeout_s=None)
    job = clock.put(client)
    assert clock.answers() == []
    assert clock.tick(4.9) == []
    assert clock.tick(0.1) == [(other, job)]
    assert client.used.pause_s == 0


def test_a_longer_pause_replaces_a_shorter_one(clock, client):
    clock.store.pause("default", 5, clock.now)
    clock.store.pause("default", 50, clock.now)
    clock.put(client)
    clock.tick(49)
    assert clock.reserve(client) is NoJob.TIMED_OUT
    clock.tick(1)
    assert clock.reserve(client) is not NoJob.TIMED_OUT


def test_the_pause_of_a_tube_ends_with_the_tube(clock, client):
    clock.store.use(client, "a")
    clock.store.pause("a", 5, clock.now)
    clock.store.use(client, "default")
    assert (list(clock.store.tubes), clock.store.next_at()) == (["default"], None)


def test_a_lost_client_s_jobs_are_ready_at_once_and_its_tubes_are_gone(clock, client, other):
    clock.store.use(client, "a")
    clock.store.watch(client, "b")
    clock.store.use(other, "c")
    clock.store.watch(client, "c")
    job = clock.put(other)
    assert clock.reserve(client) is job
    clock.store.disconnect(client, clock.now)
    assert (job.state, job.releases, job.timeouts) == (State.READY, 0, 0)
    assert list(clock.store.tubes) == ["default", "c"]
    assert clock.store.next_at() is None


def test_a_client_that_closes_its_sending_side_stops_waiting(clock, client):
    clock.reserve(client, timeout_s=100)
    clock.store.half_close(client)
    assert clock.answers() == [(client, NoJob.TIMED_OUT)]
    assert clock.reserve(client, timeout_s=100) is NoJob.TIMED_OUT


def test_changes_that_must_be_stored_are_reported(clock, client):
    store = clock.store
    job, gone = clock.put(client), clock.put(client)
    store.delete(client, gone.id)
    assert store.changed == {job.id: job, gone.id: None}
    store.changed.clear()
    clock.reserve(client)
    store.touch(client, job.id, clock.now)
    assert store.changed == {}  # reserved or not, it is ready after a restart
    for change in (
        lambda: store.release(client, job.id, 0, 5, clock.now),
        lambda: store.kick_job(job.id, clock.now),
        lambda: store.reserve_job(client, job.id, clock.now) and store.bury(client, job.id, 0, clock.now),
        lambda: store.reserve_job(client, job.id, clock.now),  # it is no longer buried
    ):
        assert change()
        assert store.changed == {job.id: job}
        store.changed.clear()


def test_removed_items_take_no_memory(clock, client):
    first = clock.put(client)
    for _ in range(1000):
        job = clock.put(client, priority=5)
        clock.store.delete(client, job.id)
        delayed = clock.put(client, delay_s=500)
        clock.store.delete(client, delayed.id)
    assert len(client.used.ready._heap) < 200
    assert len(clock.store._agenda._heap) < 200
    assert clock.reserve(client) is first


def test_ordered_items_leave_in_order_wherever_they_were_moved():
    items = Ordered()
    for name, key in (("b", 2), ("c", 3), ("a", 1), ("d", 4)):
        items.set(name, (key, 0))
    items.set("d", (0, 0))
    items.set("b", (9, 0))
    items.discard("c")
    items.discard("c")
    assert items.smallest(2) == ["d", "a"]
    assert (len(items), items.first()) == (3, ((0, 0), "d"))
