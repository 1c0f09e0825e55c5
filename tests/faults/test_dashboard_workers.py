"""The page Workers, with real supervisors."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from support.dashboards import OWN, answer_form, make_app
from support.waiting import wait_until

from flask_backend.dashboard.pages import workers as module
from flask_backend.system.procfs import PROC_IS_THERE

pytestmark = [pytest.mark.any_broker, pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")]


@pytest.fixture
def client(broker):
    return make_app(broker.uri).test_client()


def supervisor_of(client, pid):
    found = client.get("/backend/workers.json").json["supervisors"]
    return next((each for each in found if each["pid"] == pid), None)


def section_of(client, pid) -> str:
    """Return the part of the page about a supervisor: others may run on this machine."""
    page = client.get("/backend/workers").text
    return page.partition(f'id="supervisor-{pid}"')[2].partition("</section>")[0]


def test_a_supervisor_is_shown_and_controlled(supervise, client, tasks, tmp_path):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    pid = supervised.pid
    tasks.wait_for(str(tmp_path / "go"))
    wait_until(lambda: "wait_for" in section_of(client, pid), "the running task is shown")
    section = section_of(client, pid)
    assert f"Supervisor {pid} of support.workload" in section
    assert 'data-label="Attempt" class="n">1</td>' in section

    stacks = answer_form(client, section, "/workers/stack")
    assert (stacks.status_code, "in wait_for" in stacks.text) == (200, True)

    (tmp_path / "go").touch()
    assert answer_form(client, section, "/workers/add").status_code == 303
    wait_until(lambda: len(supervised.workers()) == 2, "a second worker")
    assert answer_form(client, section, "/workers/remove").status_code == 303
    wait_until(lambda: len(supervised.workers()) == 1, "one worker is left")

    assert answer_form(client, section, "/workers/reload").status_code == 303
    wait_until(lambda: (supervisor_of(client, pid) or {}).get("generation") == 1, "the reload is done", 30)
    actions = client.get("/backend/actions.json").json["actions"]
    assert [(action["action"], action["outcome"]) for action in actions] == [("control", "done")] * 4


def test_a_worker_finishes_its_task_and_another_takes_its_place(supervise, client, tasks):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    [worker] = supervised.workers()
    page = client.get(f"/backend/workers/stop?pid={supervised.pid}&worker={worker}").text
    assert f"Stop worker {worker} after its task?" in page
    answer = answer_form(client, page, "/workers/stop")
    assert f"let worker {worker} stop" in client.get(answer.location).text
    wait_until(lambda: supervised.workers() not in ([], [worker]), "another worker")
    again = answer_form(client, page, "/workers/stop")
    assert "has ended" in again.text


def test_without_the_right_nothing_is_controlled(supervise, broker):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    client = make_app(broker.uri, lambda action, what: action == "view").test_client()
    section = section_of(client, supervised.pid)
    assert section
    assert "<form" not in section
    answer = client.post("/backend/workers/remove", data={"pid": supervised.pid}, headers=OWN)
    assert answer.status_code == 403


def test_the_supervisor_of_another_broker_is_out_of_reach(supervise, broker, durable_broker):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    client = make_app(durable_broker.uri).test_client()
    section = section_of(client, supervised.pid)
    assert f"It serves another broker, {broker.uri}" in section
    assert "<form" not in section
    answer = client.post("/backend/workers/reload", data={"pid": supervised.pid}, headers=OWN)
    assert (answer.status_code, "cannot be controlled from here" in answer.text) == (409, True)


def test_workers_are_shown_while_the_broker_is_away(supervise, client, tasks, broker, tmp_path):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    tasks.wait_for(str(tmp_path / "go"))
    wait_until(lambda: "wait_for" in section_of(client, supervised.pid), "the running task is shown")
    broker.freeze()
    try:
        page = client.get("/backend/workers")
        assert (page.status_code, "The broker does not answer" in page.text) == (200, True)
    finally:
        broker.thaw()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as another user")
def test_the_supervisor_of_another_user_is_named_with_the_reason(supervise, client):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    os.seteuid(65534)
    try:
        why = module._why_hidden(supervised.pid)
        section = section_of(client, supervised.pid)
    finally:
        os.seteuid(0)
    assert "It is of the user root" in why
    assert "It is of the user root" in section
    assert "<form" not in section


def test_a_frozen_supervisor_is_not_reloaded(supervise, client):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    section = section_of(client, supervised.pid)
    supervised.send(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(supervised.pid).status() == psutil.STATUS_STOPPED, "it is stopped")
    try:
        answer = answer_form(client, section, "/workers/reload")
        assert (answer.status_code, "has been frozen" in answer.text) == (409, True)
        assert "Frozen for" in section_of(client, supervised.pid)
    finally:
        supervised.send(signal.SIGCONT)
