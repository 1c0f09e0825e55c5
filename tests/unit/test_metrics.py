"""The metrics of a status page: names, types, labels and values, without a broker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from support.published import DAILY, SERVER, Published, work

from flask_backend.deaths import EXIT_REASONS
from flask_backend.metrics.collector import Exposition, Identity
from flask_backend.metrics.queues import Answer
from flask_backend.metrics.serving import PageMissingError
from flask_backend.operations.schedules import ScheduledQueue
from flask_backend.outcome import Ending
from flask_backend.supervisor.scoreboard import Publication, Scoreboard
from flask_backend.supervisor.states import ChildState
from flask_backend.system import page
from flask_backend.system.procfs import PROC_IS_THERE

pytestmark = pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")

ROOT = Path(__file__).parents[2]
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


@pytest.fixture
def supervisor(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_folders", lambda: [str(tmp_path)])
    supervisor = Published(tmp_path)
    yield supervisor
    for board in supervisor.boards:
        board.close()


def test_each_ending_is_an_outcome_of_its_task_and_known_tasks_begin_at_zero(supervisor):
    row = supervisor.start()
    for ending in Ending:
        work(row, ending=ending)
    work(row)
    work(row, "of another release")
    supervisor.board.count_crash("q", "resize")
    supervisor.board.count_given_back("q", "resize")
    supervisor.board.count_burial("q", "resize")
    found = supervisor.values("flask_backend_jobs_total")
    assert {key[:2]: value for key, value in found.items() if value} == {
        ("hello", "done"): 2,
        ("hello", "retried"): 1,
        ("hello", "buried"): 1,
        ("hello", "discarded"): 1,
        ("hello", "expired"): 1,
        ("resize", "crashed"): 1,
        ("resize", "given_back"): 1,
        ("resize", "buried"): 1,
        ("other", "done"): 1,
    }
    assert found["resize", "done", "q"] == 0
    assert found["other", "done", "other"] == 0  # that of a queue without a task


def test_durations_and_waits_are_histograms(supervisor):
    row = supervisor.start()
    work(row)
    for waited_us in (3_000, 5_500_000, 10**13):
        row.count_wait("hello", waited_us, 1)
    counts = supervisor.values("flask_backend_job_duration_seconds_count")
    assert counts == {("hello", "q"): 1}
    assert 0 < supervisor.values("flask_backend_job_duration_seconds_sum")["hello", "q"] < 10
    buckets = {
        key: value for key, value in supervisor.values("flask_backend_job_wait_seconds_bucket").items() if key[1] == "q"
    }
    assert len(buckets) == page.BUCKETS
    assert (buckets["0.002", "q"], buckets["0.004", "q"], buckets["4.096", "q"], buckets["8.192", "q"]) == (0, 1, 1, 2)
    assert (buckets["1048.576", "q"], buckets["+Inf", "q"]) == (2, 3)
    assert supervisor.values("flask_backend_job_wait_seconds_sum")[("q",)] == pytest.approx(10_000_005.503)


def test_workers_are_counted_by_state_and_the_longest_job_and_the_largest_worker_are_known(supervisor):
    supervisor.board.show_plan([("q", 5, 5, 5)])
    for pid, state in enumerate(ChildState, 4000):
        supervisor.start(pid, state)
    busy = supervisor.start(4100)
    busy.begin(7)
    busy.show_memory(9 << 20)
    limited = supervisor.start(4101)
    limited.begin(8)
    limited.show_limit(is_waiting=True)
    workers = supervisor.values("flask_backend_workers")
    assert {key[1]: value for key, value in workers.items() if key[0] == "q"} == {
        "starting": 1,
        "idle": 1,
        "limited": 1,
        "busy": 1,
        "stopping": 4,
    }
    assert supervisor.values("flask_backend_workers_wanted") == {("q",): 5, ("other",): 0}
    assert supervisor.values("flask_backend_worker_private_bytes_max")[("q",)] == 9 << 20
    assert 0 < supervisor.values("flask_backend_job_running_seconds_max")[("q",)] < 60
    busy.end(Ending.DONE)
    assert supervisor.values("flask_backend_job_running_seconds_max")[("q",)] == 0


def test_exits_and_reloads_have_all_their_reasons_from_the_start(supervisor):
    supervisor.board.show_facts({"exits": {"q": {"crash": 2}}, "reloads": {"done": 3, "refused": 0}}, checks=3)
    exits = supervisor.values("flask_backend_worker_exits_total")
    assert (exits["q", "crash"], exits["q", "memory"], exits["other", "crash"]) == (2, 0, 0)
    assert {reason for _, reason in exits} == set(EXIT_REASONS)
    assert supervisor.values("flask_backend_reloads_total") == {("done",): 3, ("refused",): 0}


def test_counters_go_on_through_a_reload_and_count_each_job_once(supervisor):
    ended, alive = supervisor.start(), supervisor.start(4000)
    work(ended)
    work(alive)
    alive.count_reconnect()
    supervisor.board.give_back("q", ended)

    def jobs():
        return supervisor.values("flask_backend_jobs_total")["hello", "done", "q"]

    assert jobs() == 2
    supervisor.reload([alive])
    assert jobs() == 2
    work(alive)  # the old code goes on, and the new one begins
    work(supervisor.start())
    assert jobs() == 4
    assert supervisor.values("flask_backend_info") == {("shop", "1", "1.2"): 1}
    supervisor.board.retire(4000)
    assert jobs() == 4
    assert supervisor.values("flask_backend_broker_reconnects_total") == {(SERVER,): 1}


def test_the_queues_are_those_of_the_broker(supervisor):
    jobs = supervisor.values("flask_backend_queue_jobs")
    assert (jobs["q", "ready"], jobs["q", "buried"], jobs["other", "ready"], len(jobs)) == (3, 1, 0, 8)
    assert supervisor.values("flask_backend_queue_next_wait_seconds") == {("q",): 7}  # of the other it is unknown
    assert supervisor.values("flask_backend_queue_watchers") == {("q",): 2, ("other",): 0}
    assert supervisor.values("flask_backend_broker_up") == {(SERVER,): 1}


def test_periodic_tasks_have_their_times_and_what_became_of_them(supervisor):
    assert supervisor.values("flask_backend_schedule_schedulers") == {("q",): 2}
    assert supervisor.values("flask_backend_schedule_last_run_timestamp_seconds") == {("q", "daily"): 86400}
    assert supervisor.values("flask_backend_schedule_next_run_timestamp_seconds") == {("q", "daily"): 172800}
    slots = supervisor.values("flask_backend_schedule_slots_total")
    assert {key: value for key, value in slots.items() if "daily" in key} == {
        ("scheduled", "q", "daily"): 3,
        ("missed", "q", "daily"): 2,
        ("skipped", "q", "daily"): 1,
    }
    new = replace(DAILY, last=None, next=None)
    supervisor.answer = Answer(SERVER, [], [ScheduledQueue("q", 0, [new])])
    assert supervisor.values("flask_backend_schedule_last_run_timestamp_seconds") == {}
    assert supervisor.values("flask_backend_schedule_next_run_timestamp_seconds") == {}


def test_without_a_broker_all_else_is_there(supervisor):
    supervisor.answer = Answer(SERVER, None)
    assert supervisor.values("flask_backend_broker_up") == {(SERVER,): 0}
    assert "flask_backend_queue" not in supervisor.text()
    assert supervisor.values("flask_backend_workers_wanted")


def test_a_supervisor_without_a_page_is_said_to_have_none(supervisor):
    exposition = Exposition(Identity(os.getppid(), "shop", "1.2"), lambda: supervisor.answer)
    with pytest.raises(PageMissingError, match="no status page"):
        exposition.render("")


def test_both_formats_can_be_parsed_and_the_content_type_says_which_it_is(supervisor):
    work(supervisor.start())
    text, plain = supervisor.exposition.render("text/plain")
    opened, open_metrics = supervisor.exposition.render(OPENMETRICS)
    assert plain.startswith("text/plain")
    assert open_metrics.startswith("application/openmetrics-text")
    names = {family.name for family in text_string_to_metric_families(text.decode())}
    assert {family.name for family in parse_openmetrics(opened.decode())} == names


@pytest.mark.parametrize(
    "accept", [f"{OPENMETRICS[:-5]}abc", ";;,=", "\xff\0", "text/plain; version=9.9.9.9", "*/*;q=x"]
)
def test_any_accept_header_gets_an_answer(supervisor, accept):
    assert b"flask_backend_info" in supervisor.exposition.render(accept)[0]


@pytest.mark.parametrize("name", ['a"b\\c\nd', "\ud800", "é"])
def test_any_name_of_a_task_or_an_app_can_be_shown(tmp_path, monkeypatch, name):
    monkeypatch.setattr(page, "_folders", lambda: [str(tmp_path)])
    board = Scoreboard({"q": [name]}, 8, Publication(str(tmp_path)))
    board.publish()
    exposition = Exposition(Identity(os.getpid(), name, "1"), lambda: Answer(SERVER, []))
    try:
        families = {each.name: each for each in text_string_to_metric_families(exposition.render("")[0].decode())}
    finally:
        board.close()
    expected = name.encode(errors="backslashreplace").decode()
    assert expected in {sample.labels["endpoint"] for sample in families["flask_backend_jobs"].samples}
    assert families["flask_backend_info"].samples[0].labels["app"] == expected


def test_the_app_may_use_prometheus_client_in_its_multiprocess_mode(supervisor, monkeypatch, tmp_path):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "no such folder"))
    assert "flask_backend_info" in supervisor.text()
    assert "process_" not in supervisor.text()
    assert "python_" not in supervisor.text()


def test_the_reference_has_each_metric_with_its_type_and_labels(supervisor):
    work(supervisor.start())
    exposed = {
        (
            f"{family.name}_total" if family.type == "counter" else family.name,
            family.type,
            ", ".join(sorted({label for sample in family.samples for label in sample.labels} - {"le"})) or "none",
        )
        for family in text_string_to_metric_families(supervisor.text())
    }
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", text, re.MULTILINE)
    documented = {(name, kind, ", ".join(sorted(labels.replace("`", "").split(", ")))) for name, kind, labels in rows}
    assert documented == exposed


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of the package prometheus")
def test_promtool_finds_no_fault_in_the_metrics(supervisor):
    work(supervisor.start())
    checked = subprocess.run(["promtool", "check", "metrics"], input=supervisor.text(), capture_output=True, text=True)
    assert (checked.stdout, checked.stderr, checked.returncode) == ("", "", 0)
