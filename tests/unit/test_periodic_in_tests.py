"""Periodic tasks in the test kit: ``move_time`` schedules them, in memory only."""

from __future__ import annotations

from datetime import timedelta

import pytest
from flask import Flask
from support.in_memory import make_app

from flask_backend import Backend, current_job, testing


def test_each_time_on_the_way_is_scheduled_at_its_time(app, backend):
    ran = []

    @backend.periodic(every=60, name="minutely", args=["m"])
    @backend.periodic("0 * * * *", name="hourly", args=["h"])
    @backend.task("q")
    def note(what):
        ran.append((what, current_job.headers["slot"]))

    testing.move_time(timedelta(hours=3), app)
    assert ran == []
    calls = testing.scheduled(app)
    assert len(calls) == 180 + 3
    testing.drain(app)
    assert len(ran) == 183
    assert [slot for what, slot in ran if what == "m"] == sorted(slot for what, slot in ran if what == "m")
    assert len({slot for what, slot in ran if what == "h"}) == 3
    testing.move_time(59.5, app)
    testing.move_time(0.5, app)
    assert len(testing.scheduled(app)) in (184, 185)  # one more minute, and perhaps an hour
    testing.clear(app)
    assert testing.drain(app) == []


def test_a_week_has_seven_nights_in_the_zone_of_the_app():
    app = Flask("there")
    app.config.update(BACKEND_CONNECTION_URI="memory://", BACKEND_TIMEZONE="Asia/Kathmandu")
    backend = Backend(app)

    @backend.periodic("@daily")
    @backend.task("q")
    def nightly(): ...

    testing.move_time(timedelta(days=7), app)
    assert len(testing.drain(app)) == 7


@pytest.mark.parametrize(("overlap", "count"), [(True, 3), (False, 1)])
def test_calls_overlap_until_they_are_drained(app, backend, overlap, count):
    @backend.periodic(every=60, overlap=overlap)
    @backend.task("q")
    def note(): ...

    testing.move_time(180, app)
    assert len(testing.drain(app)) == count
    testing.move_time(60, app)
    assert len(testing.drain(app)) == 1


def test_a_delay_is_over_at_the_same_time_with_and_without_periodic_tasks(app, backend):
    backend.periodic(every=7)(backend.task("q")(nothing))
    task = backend.task("r")(nothing)
    with app.app_context():
        task.options(delay=60)()
    testing.move_time(59, app)
    assert [ran.scheduled.queue for ran in testing.drain(app) if ran.scheduled.queue == "r"] == []
    testing.move_time(1, app)
    assert [ran.scheduled.queue for ran in testing.drain(app) if ran.scheduled.queue == "r"] == ["r"]


def nothing(): ...


def test_sync_schedules_nothing():
    app, backend = make_app("sync://")
    ran = []

    @backend.periodic(every=1)
    @backend.task("q")
    def note():
        ran.append(1)

    testing.move_time(100, app)
    assert ran == []
