"""Workers of a limited queue: they wait for a token, with their job, and start no task without one."""

from __future__ import annotations

import json
import re
import signal
import time

import psutil
import pytest
from support.limited import APP, count_tokens, events, most_at_once, most_within, waiting
from support.limited_app import GPU, GPU_TOO, INBOX, MAIL
from support.supervised import title
from support.waiting import wait_until

from flask_backend.names import limit_tube


@pytest.fixture
def start(command, broker, tmp_path):
    def start(queue: str = GPU, *args: str, **env: str):
        watching = broker.tube(queue).get("current-watching", 0)
        running = command("worker", queue, *args, app=APP, **env)
        wait_until(lambda: broker.tube(queue).get("current-watching", 0) > watching, f"it serves:\n{running.log}")
        return running

    return start


def put(broker, queue: str, endpoint: str, *args, **headers) -> int:
    call = {"endpoint": endpoint, "args": list(args), "headers": headers}
    return broker.put(queue, json.dumps(call).encode())


def kinds(worker) -> list[str]:
    return [f"{kind} {number}" for _, _, kind, number in events(worker.ledger)]


def waiters(supervised) -> list[int]:
    """Return the workers whose titles say that they wait."""
    return [pid for pid in supervised.workers() if re.search(r"\[waits for limit gpu \d+s\]$", title(pid))]


def wait_for(worker, *lines: str) -> None:
    wait_until(lambda: set(lines) <= set(kinds(worker)), f"{lines} in {kinds(worker)}; log:\n{worker.log[-3000:]}")


@pytest.fixture
def fleet(supervise):
    """Start workers of some queues, under a supervisor."""

    def fleet(*queues: str, **env: str):
        return supervise(*(arg for queue in queues for arg in ("--queue", queue)), app=APP, **env)

    return fleet


@pytest.fixture
def occupied(fleet, start, broker, tmp_path):
    """Two workers run a task, and another one has a job and waits. Yield the last, its job, and what ends the tasks."""
    go = tmp_path / "go"
    fleet(f"{GPU}=2")
    for number in range(2):
        put(broker, GPU, "train_until", str(go), number)
    wait_until(lambda: broker.count(GPU, "reserved") == 2, "both run")
    waiter = start()
    wait_for(waiter, "begin 0", "begin 1")
    job = put(broker, GPU, "train", "third")
    wait_until(lambda: waiting(broker, "gpu") == 1, f"it waits for a token:\n{waiter.log}")
    return waiter, job, go


def test_at_most_n_run_at_once_in_all_queues_of_the_limit(fleet, broker):
    workers = [fleet(f"{GPU}=2", f"{GPU_TOO}=2")]
    for number in range(20):
        put(broker, GPU, "train", number)
        put(broker, GPU_TOO, "train_too", number + 20)
    wait_for(workers[0], *(f"end {number}" for number in range(40)))
    assert most_at_once(workers[0].ledger) == 2
    wait_until(lambda: count_tokens(broker, "gpu") == (2, 2), "both tokens are free")


def test_so_many_start_within_the_time(fleet, broker):
    workers = [fleet(f"{MAIL}=2", f"{INBOX}=1")]
    for number in range(5):
        put(broker, MAIL, "mail", number)
        broker.put(INBOX, json.dumps(number + 5).encode())
    wait_for(workers[0], *(f"mail {number}" for number in range(10)))
    # The server counts from one token to the next; the starts follow within moments, which may differ.
    assert most_within(workers[0].ledger, 0.5) == 3
    times = [at for at, *_ in events(workers[0].ledger)]
    assert times[-1] - times[0] > 2.9


def test_what_a_job_that_waits_may_need(fleet, broker, tmp_path):
    """A short TTR, a time limit, an expiry: two tasks run, and four workers wait with these jobs."""
    go = tmp_path / "go"
    workers = fleet(f"{GPU}=6")
    for number in range(2):
        put(broker, GPU, "train_until", str(go), number)
    wait_for(workers, "begin 0", "begin 1")
    expires = time.time() + 2
    late = put(broker, GPU, "train", "late", expires=expires)
    patient = put(broker, GPU, "train_shortly", "patient", 0.2)
    put(broker, GPU, "train", "plain")
    with broker.client(GPU) as client:
        short = client.put(json.dumps({"endpoint": "train", "args": ["short"]}).encode(), ttr=1)
    wait_until(lambda: waiting(broker, "gpu") == 4, f"four wait:\n{workers.log}")
    wait_until(lambda: len(waiters(workers)) == 4, "they say so")
    while time.time() < expires:  # longer than that TTR, and than the time limit of 0.5 s
        assert broker.job(short)["state"] == "reserved"
    go.touch()
    wait_for(workers, "end patient", "end plain", "end short")
    wait_until(lambda: broker.is_empty(GPU), "all jobs are done")
    assert "begin late" not in kinds(workers)
    assert broker.job(late) is broker.job(patient) is None
    assert "TaskTimeout" not in workers.log
    assert workers.log.count("lost the reservation") == 0
    wait_until(lambda: count_tokens(broker, "gpu") == (2, 2), "both tokens are free")
    wait_until(lambda: all(title(pid).endswith("[idle]") for pid in workers.workers()), "all are idle")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_ends_while_it_waits_gives_its_job_back_uncounted(occupied, broker, number):
    waiter, job, go = occupied
    waiter.send(number)
    waiter.wait(5)
    wait_until(lambda: broker.job(job)["state"] == "ready", "the job is ready again")
    stats = broker.job(job)
    assert (stats["releases"], stats["buries"], stats["timeouts"]) == (0, 0, 0)
    if number == signal.SIGTERM:
        assert waiter.process.returncode == 0
        assert f"job {job} (train) goes back: the worker is to stop while it waits for limit gpu" in waiter.log
    go.touch()
    wait_for(waiter, "end third")
    wait_until(lambda: count_tokens(broker, "gpu") == (2, 2), "both tokens are free")


def test_the_token_of_a_killed_worker_is_free_at_once(occupied, broker):
    waiter, _, _ = occupied
    [begun, *_] = [pid for _, pid, kind, _ in events(waiter.ledger) if kind == "begin"]
    killed_at = time.monotonic()
    psutil.Process(begun).kill()
    wait_for(waiter, "begin third")
    assert time.monotonic() - killed_at < 5


def test_a_reload_during_the_wait_gives_the_job_back_uncounted(fleet, broker, tmp_path):
    go = tmp_path / "go"
    workers = fleet(f"{GPU}=3")
    for number in range(2):
        put(broker, GPU, "train_until", str(go), number)
    wait_for(workers, "begin 0", "begin 1")
    job = put(broker, GPU, "train", "third")
    wait_until(lambda: waiting(broker, "gpu") == 1, f"one waits:\n{workers.log}")
    [old] = wait_until(lambda: waiters(workers), "it says so")
    workers.send(signal.SIGHUP)
    wait_until(lambda: not psutil.pid_exists(old), f"the worker that waits has ended:\n{workers.log}")
    wait_until(lambda: broker.job(job)["reserves"] == 2, "a new one has its job")
    stats = broker.job(job)
    assert (stats["state"], stats["releases"], stats["timeouts"]) == ("reserved", 0, 0)
    go.touch()
    wait_for(workers, "end third")
    assert most_at_once(workers.ledger) == 2


def test_each_attempt_takes_a_token(start, broker):
    worker = start()
    job = put(broker, GPU, "fail", "again")
    wait_until(lambda: (broker.job(job) or {}).get("state") == "buried", f"it has failed twice:\n{worker.log}")
    assert kinds(worker).count("begin again") == 2
    assert count_tokens(broker, "gpu") == (2, 2)
    with broker.client() as client:
        assert client.stats_tube(limit_tube("gpu"))["total-jobs"] == 2


def test_async_tasks_hold_a_token_and_a_worker_reserves_one_job_at_a_time(supervise, broker):
    supervisor = supervise("--queue", f"{GPU}=3", "--prefetch", "8", app=APP)
    for number in range(9):
        put(broker, GPU, "train_async", number, 0.2)
    wait_until(lambda: broker.count(GPU, "reserved") == 3, f"each has one:\n{supervisor.log}")
    wait_for(supervisor, *(f"end {number}" for number in range(9)))
    assert most_at_once(supervisor.ledger) == 2


# An app whose tokens expire soon.
SHORT = """
from flask_backend.broker import limits
from support.limited_app import app

limits.TOKEN_TTR_S = 1
"""


def test_a_token_is_kept_for_longer_than_its_ttr_and_its_loss_is_logged(supervise, broker, tmp_path):
    (tmp_path / "short.py").write_text(SHORT)
    path = f"{tmp_path}:{APP.rpartition('/')[0]}/.."
    supervisor = supervise("--queue", f"{GPU}=2", app="short", PYTHONPATH=path, LIMIT_N="1")
    put(broker, GPU, "train", "long", 2)
    put(broker, GPU, "train_async", "async", 2)
    put(broker, GPU, "train", "last")
    wait_for(supervisor, "end long", "end async", "end last")
    assert most_at_once(supervisor.ledger) == 1
    assert "lost" not in supervisor.log
    put(broker, GPU, "train", "loses", 3)
    wait_for(supervisor, "begin loses")
    broker.kill()
    broker.start()
    supervisor.wait_for_log("lost the token of limit gpu while job")


def test_a_broker_that_restarts_during_the_wait_delays_it(supervise, durable_broker, tmp_path):
    broker, go = durable_broker, tmp_path / "go"
    workers = [supervise("--queue", f"{GPU}=3", app=APP, broker=broker)]
    for number in range(2):
        put(broker, GPU, "train_until", str(go), number)
    wait_for(workers[0], "begin 0", "begin 1")
    put(broker, GPU, "train", "third")
    wait_until(lambda: waiting(broker, "gpu") == 1, "one waits")
    broker.kill()
    go.touch()
    broker.start()
    wait_for(workers[0], "end third")
    wait_until(lambda: broker.is_empty(GPU), "all jobs are done")
    wait_until(lambda: count_tokens(broker, "gpu") == (2, 2), "both tokens are free")


def test_a_broker_that_has_lost_its_memory_gets_new_tokens(start, broker):
    worker = start()
    put(broker, GPU, "train", 1)
    wait_for(worker, "end 1")
    broker.kill()
    broker.start()
    put(broker, GPU, "train", 2)
    wait_for(worker, "end 2")
    wait_until(lambda: count_tokens(broker, "gpu") == (2, 2), "there are two again")


def test_a_broker_that_freezes_during_the_wait_delays_it(occupied, broker, start, monkeypatch):
    _, job, go = occupied
    monkeypatch.setenv("FLASK_BACKEND_TIMEOUT", "1")
    waiter = start()
    put(broker, GPU, "train", "fourth")
    wait_until(lambda: waiting(broker, "gpu") == 2, "it waits too")
    broker.freeze()
    wait_until(lambda: "does not answer" in waiter.log or "no answer" in waiter.log, f"it notices:\n{waiter.log}", 60)
    broker.thaw()
    go.touch()
    wait_for(waiter, "end third", "end fourth")
    wait_until(lambda: broker.job(job) is None, "the jobs are done")


def test_the_numbers_of_the_code_that_was_loaded_last_count(fleet, start, broker, tmp_path):
    go = tmp_path / "go"
    old = [fleet(f"{GPU}=2")]
    put(broker, GPU, "train", "first")
    wait_for(old[0], "end first")
    new = [start(LIMIT_N="3") for _ in range(2)]
    for number in range(4):
        put(broker, GPU, "train_until", str(go), number)
    wait_until(lambda: sum(line.startswith("begin") for line in kinds(new[0])) == 4, "three of four run now")
    wait_until(lambda: waiting(broker, "gpu") == 1, "one waits")
    assert count_tokens(broker, "gpu")[0] == 3
    go.touch()
    wait_for(new[0], *(f"end {number}" for number in range(4)))
    assert count_tokens(broker, "gpu") == (3, 3)
