"""The pages of failures, of a group and of a job, and the acts there; on a real broker, without scripts."""

from __future__ import annotations

import json
import re
import time
from html import unescape

import pytest
from support.dashboards import OWN, answer_form, make_app
from support.stories import bury_many

from flask_backend.config import Address, Settings
from flask_backend.names import failures_tube
from flask_backend.operations.recent import StoryReader

pytestmark = pytest.mark.any_broker

TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/app.py", line 12, in welcome
    charge(user)
  File "/usr/lib/python3.11/site-packages/pay/client.py", line 7, in charge
    raise Refused(card)
  File "/srv/shop/cards.py", line 3, in check
    assert card
pay.Refused: card 4711"""
NAMED = "/backend/failures/group?queue=mail&task=welcome&kind=ValueError"


def a_call(number: int = 0, **more) -> bytes:
    return json.dumps({"endpoint": "welcome", "args": [number], "headers": {"id": f"uid{number}"}, **more}).encode()


CALL = a_call(4711)


@pytest.fixture
def settings(broker):
    return Settings(Address("127.0.0.1", broker.port))


@pytest.fixture
def app(broker):
    return make_app(broker.uri)


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def bury(settings):
    def bury(count=1, body=CALL, queue="mail", **told):
        return bury_many(settings, queue, count, body, **{"endpoint": "welcome", "exception": "ValueError", **told})

    return bury


def writes(broker) -> dict[str, int]:
    with broker.client() as client:
        stats = client.stats()
    names = ("put", "delete", "release", "bury", "kick", "pause-tube", "touch")
    return {name: stats[f"cmd-{name}"] for name in names} | {"total-jobs": stats["total-jobs"]}


class TestFailures:
    def test_they_are_counted_by_group_and_age_with_the_newest_message(self, client, bury):
        now = time.time()
        bury(3, message="no luck", buried_at=lambda n: now - 10 + n)
        bury(2, exception="KeyError", buried_at=lambda n: now - 90_000 + n)
        page = client.get("/backend/failures").text
        assert page.index("ValueError") < page.index("KeyError")
        assert "no luck" in page
        told = client.get("/backend/failures.json").json
        assert (told["buried"], told["is_complete"]) == (5, True)
        counts = [[group[name]["number"] for name in ("1h", "24h", "7d", "all")] for group in told["groups"]]
        assert counts == [[3, 3, 3, 3], [0, 0, 2, 2]]

    def test_a_pattern_filters_them(self, client, bury):
        bury(1)
        bury(1, exception="KeyError", endpoint="other")
        page = client.get("/backend/failures?pattern=/ValueError").text
        assert "ValueError" in page
        assert "KeyError" not in page
        assert "No failure matches" in client.get("/backend/failures?pattern=absent").text

    def test_without_failures_the_page_explains_what_it_is_for(self, client):
        assert "No buried jobs" in client.get("/backend/failures").text

    def test_jobs_without_a_story_are_counted(self, broker, client):
        with broker.client("mail") as connection:
            connection.put(b"{}")
            connection.bury(connection.reserve())
        assert "1 buried job of" in client.get("/backend/failures").text

    def test_what_a_bound_cuts_is_at_least(self, app, client, bury):
        bury(30)
        app.extensions["backend.dashboard.stories"] = {app.config["BACKEND_CONNECTION_URI"]: StoryReader(most=20)}
        page = client.get("/backend/failures").text
        assert "≥ 20" in page
        assert "Of the newest 20 of 30 buried jobs" in page
        page = client.get(NAMED).text
        assert "≥ 20" in page
        further = client.get(f"{NAMED}&before=2").text  # no such story
        assert "None of the stories" in further

    def test_a_queue_that_others_crowd_out_is_looked_at_alone(self, app, client, bury):
        bury(5, queue="reports", buried_at=time.time() - 3600, exception="KeyError")
        bury(30)
        app.extensions["backend.dashboard.stories"] = {app.config["BACKEND_CONNECTION_URI"]: StoryReader(most=20)}
        page = client.get("/backend/failures?pattern=/KeyError").text
        assert "None of those that were read matches" in page
        link = "/backend/failures?queue=reports&amp;pattern=/KeyError"
        assert link in page
        page = client.get(link.replace("&amp;", "&")).text
        assert "KeyError" in page
        assert ">ValueError<" not in page
        question = client.get(unescape(re.search(r'href="(/backend/failures/retry[^"]+)"', page)[1])).text
        assert "Retry 5 jobs of reports" in question
        answer = answer_form(client, question, "/failures/retry")
        assert "retried 5 jobs" in client.get(answer.location).text

    def test_many_groups_are_cut_and_filtered(self, client, bury):
        bury(60, exception=lambda number: f"E{number:02}")
        page = client.get("/backend/failures").text
        assert page.count("<tr id=") == 50
        assert "And 10 older groups" in page
        assert len(client.get("/backend/failures.json").json["groups"]) == 60
        assert client.get("/backend/failures?pattern=/E0*").text.count("<tr id=") == 10

    def test_a_get_of_each_page_writes_nothing(self, broker, client, bury):
        [job_id] = bury(1)
        waits = broker.put("mail", a_call(), delay=100)
        before = writes(broker)
        for path in ("failures", f"failures/group?{NAMED.partition('?')[2]}", f"job?id={job_id}", f"job?id={waits}"):
            assert client.get(f"/backend/{path}").status_code == 200
            name, _, query = path.partition("?")
            assert client.get(f"/backend/{name}.json?{query}").status_code == 200
        for path in ("failures/retry", "failures/delete", "job/delete", "job/cancel"):
            client.get(f"/backend/{path}?queue=mail&id={job_id}&mark=x&newest=9&until=9e9&kind=ValueError&task=welcome")
        assert writes(broker) == before
        assert broker.job(job_id)["state"] == "buried"

    def test_all_that_match_are_retried_after_a_question_with_their_number(self, broker, client, bury):
        ids = [*bury(2), *bury(1, queue="images")]
        other = bury(1, endpoint="other")
        page = client.get("/backend/failures?pattern=welcome").text
        link = next(part for part in page.split('"') if part.startswith("/backend/failures/retry?"))
        question = client.get(link.replace("&amp;", "&")).text
        assert "Retry 3 jobs of all queues that failed with welcome?" in question
        answer = answer_form(client, question, "/failures/retry")
        assert "retried 3 jobs" in client.get(answer.location).text
        assert {broker.job(job_id)["state"] for job_id in ids} == {"ready"}
        assert broker.job(other[0])["state"] == "buried"

    def test_all_queues_are_only_those_where_the_person_may(self, broker, settings):
        def may(action, what):
            return action == "view" or what.get("queue") in (None, "mail")

        mine = bury_many(settings, "mail", 1, endpoint="welcome", exception="E")
        others = bury_many(settings, "images", 1, endpoint="welcome", exception="E", message="a secret")
        client = make_app(broker.uri, may).test_client()
        page = client.get("/backend/failures?pattern=welcome").text
        assert "a secret" not in page
        link = next(part for part in page.split('"') if part.startswith("/backend/failures/retry?"))
        answer_form(client, client.get(link.replace("&amp;", "&")).text, "/failures/retry")
        assert (broker.job(mine[0])["state"], broker.job(others[0])["state"]) == ("ready", "buried")


class TestGroup:
    def test_its_jobs_are_shown_newest_first_fifty_a_page(self, client, bury):
        ids = bury(60, message="no luck")
        told = client.get(NAMED.replace("group?", "group.json?")).json
        assert [job["job"] for job in told["jobs"]] == ids[:9:-1]
        assert told["jobs"][0]["call"] == "welcome(4711)"
        older = client.get(f"{NAMED.replace('group?', 'group.json?')}&before={told['before']}").json
        assert ([job["job"] for job in older["jobs"]], older["before"]) == (ids[9::-1], None)

    def test_the_ticked_ones_are_retried_and_no_other(self, broker, client, bury):
        one, two, three = bury(3)
        seen = re.findall(r'name="seen" value="([^"]*)"', client.get(NAMED).text)
        assert len(seen) == 3
        data = {"queue": "mail", "task": "welcome", "kind": "ValueError", "seen": seen, "id": [str(one), str(three)]}
        answer = client.post("/backend/failures/group/retry", data=data, headers=OWN)
        assert "retried 2 jobs of mail" in client.get(answer.location).text
        assert [broker.job(job_id)["state"] for job_id in (one, two, three)] == ["ready", "buried", "ready"]
        assert broker.count(failures_tube("mail"), "ready") == 1

    def test_nothing_ticked_does_nothing(self, client, bury):
        bury(1)
        answer = answer_form(client, client.get(NAMED).text, "/failures/group/retry")
        assert answer.status_code == 400

    def test_an_id_that_the_page_did_not_show_is_refused(self, broker, client, bury):
        [one] = bury(1)
        data = {"queue": "mail", "id": [str(one)], "seen": ["999 1 x"]}
        assert client.post("/backend/failures/group/delete", data=data, headers=OWN).status_code == 400
        data["seen"] = [f"{one} 0 wrong"]
        answer = client.post("/backend/failures/group/delete", data=data, headers=OWN)
        assert "another job now" in client.get(answer.location).text
        assert broker.job(one)["state"] == "buried"

    def test_ticked_jobs_are_deleted_with_their_stories(self, broker, client, bury):
        one, two = bury(2)
        told = {job["job"]: job for job in client.get(NAMED.replace("group?", "group.json?")).json["jobs"]}
        seen = [f"{job_id} {told[job_id]['note']} uid4711" for job_id in (one, two)]
        data = {"queue": "mail", "task": "welcome", "kind": "ValueError", "id": [str(one), str(two)], "seen": seen}
        answer = client.post("/backend/failures/group/delete", data=data, headers=OWN)
        assert "deleted 2 jobs of mail" in client.get(answer.location).text
        assert broker.jobs() == 0

    def test_all_of_it_leaves_what_fails_later(self, broker, client, bury):
        ids = bury(3)
        page = client.get(NAMED).text
        link = next(part for part in page.split('"') if part.startswith("/backend/failures/delete?"))
        question = client.get(link.replace("&amp;", "&")).text
        assert "Delete 3 jobs of mail" in question
        assert f"flask-backend delete --all --match welcome/ValueError --broker {broker.uri} --queue mail" in question
        later = bury(1)
        answer = answer_form(client, question, "/failures/delete")
        assert "deleted 3 jobs" in client.get(answer.location).text
        assert [broker.job(job_id) for job_id in ids] == [None] * 3
        assert broker.job(later[0])["state"] == "buried"

    def test_a_large_act_goes_on_in_steps(self, broker, client, bury, monkeypatch):
        monkeypatch.setattr("flask_backend.dashboard.pages.failures.CHUNK", 20)
        bury(50)
        page = client.get(NAMED).text
        link = next(part for part in page.split('"') if part.startswith("/backend/failures/retry?"))
        page, steps = client.get(link.replace("&amp;", "&")).text, 0
        while True:
            answer = answer_form(client, page, "/failures/retry")
            steps += 1
            if answer.status_code == 303:
                break
            assert f"Retried {20 * steps} of 50" in answer.text
            page = answer.text
        assert steps == 3
        assert "retried 50 jobs" in client.get(answer.location).text
        assert broker.count("mail", "ready") == 50


class TestJob:
    def test_a_failure_has_its_story_its_traceback_and_the_command_lines(self, broker, client, bury):
        [job_id] = bury(1, message="card 4711", traceback=TRACEBACK, attempts=3, allowed=3, ran_s=0.5)
        page = client.get(f"/backend/job?queue=mail&id={job_id}").text
        assert f"Job {job_id} has been buried for" in page
        assert "welcome(4711)" in page
        assert "3 of 3" in page
        assert "1 frame of libraries" in page
        assert page.index("Where it failed") < page.index("cards.py") < page.index("pay/client.py")
        assert f"flask-backend retry {job_id} --broker {broker.uri}" in page
        told = client.get(f"/backend/job.json?queue=mail&id={job_id}").json
        assert (told["call"], told["story"]["traceback"]) == ("welcome(4711)", TRACEBACK)

    def test_a_killed_worker_leaves_signal_and_memory(self, client, bury):
        death = {"exit_signal": 9, "private_bytes": 30 << 20, "worker_pid": 4711}
        [job_id] = bury(1, exception=None, message="killed by signal 9", death=death)
        page = client.get(f"/backend/job?queue=mail&id={job_id}").text
        assert "30.0M" in page
        assert "killed by signal 9" in page

    def test_who_may_not_see_arguments_sees_none_anywhere(self, broker, settings):
        client = make_app(broker.uri, lambda action, _what: action != "view_arguments").test_client()
        body = a_call(4711, headers={"id": "x", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
        told = {
            "endpoint": "welcome",
            "exception": "ValueError",
            "message": "4711",
            "reason": "4711",
            "call": "f(4711)",
        }
        [job_id] = bury_many(settings, "mail", 1, body, traceback=TRACEBACK, **told)
        waits = broker.put("mail", b'{"secret": 4711}', delay=100)
        paths = ["failures", f"failures/group?{NAMED.partition('?')[2]}", f"job?id={job_id}", f"job?id={waits}"]
        paths += [f"{path.partition('?')[0]}.json?{path.partition('?')[2]}" for path in paths]
        for path in paths:
            answer = client.get(f"/backend/{path}")
            assert answer.status_code == 200
            assert "4711" not in answer.text, path
        assert "a" * 32 in client.get(f"/backend/job?id={job_id}").text

    def test_secret_values_are_masked_by_the_parameters_of_the_app(self, broker, settings):
        client = make_app(broker.uri, config={"BACKEND_MASK": ["user"]}).test_client()
        body = b'{"endpoint": "welcome", "args": ["hunter2"]}'
        [job_id] = bury_many(settings, "mail", 1, body, endpoint="welcome", call='welcome(user="hunter2")')
        page = client.get(f"/backend/job?id={job_id}").text
        assert "hunter2" not in page
        assert "welcome(&#34;***&#34;)" in page

    def test_a_waiting_job_is_explained_and_cancelled(self, broker, client):
        job_id = broker.put("mail", a_call(1), delay=100)
        page = client.get(f"/backend/job?id={job_id}").text
        assert f"Job {job_id} is scheduled for" in page
        question = client.get(f"/backend/job/cancel?queue=mail&id={job_id}&mark=uid1").text
        answer = answer_form(client, question, "/job/cancel")
        assert "cancelled 1 job of mail" in client.get(answer.location).text
        assert broker.job(job_id) is None

    def test_another_job_that_has_its_id_by_now_is_refused(self, broker, app, client, bury):
        [job_id] = bury(1)
        page = client.get(f"/backend/job?id={job_id}").text
        broker.stop()
        broker.start()
        assert broker.put("mail", a_call(7), delay=100) == job_id
        answer = answer_form(client, page, "/job/retry")
        assert "another job now" in client.get(answer.location).text
        assert broker.job(job_id)["state"] == "delayed"
        [action] = client.get("/backend/actions.json").json["actions"]
        assert "another job now" in action["outcome"]

    def test_a_retry_deletes_the_story(self, broker, client, bury):
        [job_id] = bury(1)
        answer_form(client, client.get(f"/backend/job?id={job_id}").text, "/job/retry")
        assert broker.job(job_id)["state"] == "ready"
        assert broker.is_empty(failures_tube("mail"))

    @pytest.mark.parametrize("query", ["id=999", "id=x", "", "id=1&queue=other"])
    def test_no_such_job_is_a_page(self, broker, client, query):
        broker.put("mail", b"x")
        assert client.get(f"/backend/job?{query}").status_code in (400, 404)

    def test_a_note_is_not_a_job(self, client, bury, broker):
        bury(1)
        with broker.client(failures_tube("mail")) as connection:
            note = connection.peek_ready().id
        assert client.get(f"/backend/job?id={note}").status_code == 404
        assert client.get(f"/backend/job?id={note}&queue={failures_tube('mail')}").status_code == 404

    def test_a_forged_note_of_another_job_is_not_its_story(self, client, bury):
        one, two = bury(2, message=lambda number: f"message {number}")
        told = {job["job"]: job for job in client.get(NAMED.replace("group?", "group.json?")).json["jobs"]}
        page = client.get(f"/backend/job?id={one}&note={told[two]['note']}").text
        assert "message 1" not in page


HOSTILE = [
    b"<script>alert(1)</script>",
    b"\x00\xff\xfe",
    "\u202eevil \u2066 \x1b[31m".encode(),
    json.dumps({"endpoint": '"><script>', "args": ["\u202e", "</pre><script>"]}).encode(),
    b"[" * 1000 + b"]" * 1000,
    b"x" * 60_000,
    json.dumps({"endpoint": "welcome", "args": [["x" * 100] * 500], "headers": {"id": '"><script>'}}).encode(),
]


@pytest.mark.parametrize("body", HOSTILE)
def test_hostile_bodies_and_stories_get_no_markup_and_no_direction_through(client, bury, body):
    text = '</pre><script>alert(1)</script>\u202e\x1b[31m" onload="x'
    told = {"message": text, "exception": f"E{text}", "traceback": f"{text}\n" * 50, "reason": text, "host": text}
    [job_id] = bury(1, body=body, endpoint=text, **told)
    [group] = client.get("/backend/failures.json").json["groups"]
    asked = {"queue": "mail", "task": group["endpoint"], "kind": group["kind"]}
    for path, query in (("failures", {}), ("failures/group", asked), ("job", {"id": job_id})):
        page = client.get(f"/backend/{path}", query_string=query)
        assert page.status_code == 200
        assert "<script>" not in page.text
        assert not set("\u202e\u2066\x1b\x00") & set(page.text)
        assert len(page.data) < 400_000
        told = client.get(f"/backend/{path}.json", query_string=query).text
        assert not set("\u202e\u2066\x1b\x00") & set(told)
