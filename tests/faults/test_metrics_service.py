"""`supervise --metrics`, while its helper, its workers, its supervisor and its broker are hurt."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.supervised import APP, Supervised, title
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

from flask_backend import __version__
from flask_backend.system.procfs import PROC_IS_THERE

pytestmark = [pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux"), pytest.mark.any_broker]

URL = r"metrics at (http://\S+)"


def url(supervised: Supervised) -> str:
    return wait_until(lambda: re.search(URL, supervised.log), f"a URL in {supervised.log}")[1]


def scrape(supervised: Supervised, timeout_s: float = 20) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples by name, and by the values of their labels in the order of their names."""
    with urllib.request.urlopen(url(supervised), timeout=timeout_s) as answer:  # noqa: S310  # a URL of this test
        text = answer.read().decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sample.labels[name] for name in sorted(sample.labels))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def total(supervised: Supervised, name: str, *labels: str) -> float:
    """Return the sum of the samples that have all these values of labels."""
    samples = scrape(supervised)[f"flask_backend_{name}"]
    return sum(value for key, value in samples.items() if set(labels) <= set(key))


def helpers(supervised: Supervised) -> list[int]:
    return [pid for pid in supervised.children() if "[serves metrics]" in title(pid)]


def the_helper(supervised: Supervised, *not_: int) -> int:
    return wait_until(
        lambda: next((pid for pid in helpers(supervised) if pid not in not_), None), f"a helper; log:\n{supervised.log}"
    )


@pytest.fixture
def watched(supervise):
    """A supervisor of two workers that serves metrics on a free port."""
    supervised = supervise("--metrics", "127.0.0.1:0", workers=2)
    supervised.wait_ready()
    the_helper(supervised)
    return supervised


def test_a_scrape_has_the_work_the_deaths_and_the_queues_of_the_whole_app(watched, tasks, broker, tmp_path):
    tasks.note("x")
    tasks.decide("bury")
    broker.put(INBOX, b"a queue that this supervisor does not serve")
    wait_until(lambda: total(watched, "jobs_total", "note", "done") == 1, "it is counted")
    wait_until(lambda: total(watched, "jobs_total", "decide", "buried") == 1, "it is counted")
    wait_until(lambda: total(watched, "workers", "idle") == 2, "both are idle")
    found = scrape(watched)
    assert found["flask_backend_broker_up"] == {(f"127.0.0.1:{broker.port}",): 1}
    jobs = found["flask_backend_queue_jobs"]
    assert (jobs[QUEUE, "buried"], jobs[QUEUE, "ready"], jobs[INBOX, "ready"]) == (1, 0, 1)
    watchers = found["flask_backend_queue_watchers"]
    assert (watchers[QUEUE,], watchers[INBOX,]) == (2, 0)
    assert found["flask_backend_pss_bytes"][()] > 10 << 20
    os.kill(watched.workers()[0], signal.SIGKILL)
    wait_until(lambda: total(watched, "worker_exits_total", "killed") == 1, "the idle one is counted")
    tasks.die_once("kill", str(tmp_path / "marker"))
    watched.wait_for_line("survived")
    wait_until(lambda: total(watched, "jobs_total", "die_once", "done") == 1, "it has run again")
    assert total(watched, "worker_exits_total", "crash") == 1
    assert total(watched, "jobs_total", "die_once", "crashed") == 1
    watched.send(signal.SIGTERM)
    watched.assert_clean_exit(0)


def test_a_killed_helper_is_replaced_and_no_scrape_is_lost(watched):
    port = int(url(watched).split(":")[2].split("/")[0])

    def listens(pid):
        return any(c.status == "LISTEN" and c.laddr.port == port for c in psutil.Process(pid).net_connections())

    first = the_helper(watched)
    assert listens(watched.pid)
    assert [pid for pid in watched.children() if listens(pid)] == [first]  # and no worker
    os.kill(first, signal.SIGKILL)
    assert scrape(watched)
    second = the_helper(watched, first)
    os.kill(second, signal.SIGKILL)  # so soon that the next one waits
    assert scrape(watched)
    assert watched.log.count("the process that serves metrics was killed by signal 9") == 2
    assert total(watched, "worker_exits_total") == 0
    watched.send(signal.SIGTERM)
    watched.assert_clean_exit(0)


def test_counters_and_the_socket_cross_reloads(supervise, tasks, tmp_path):
    version = tmp_path / "versions" / "version.py"
    version.parent.mkdir()
    version.write_text("VERSION = 1")
    watched = supervise(
        "--metrics", "127.0.0.1:0", workers=2, VERSION_IN=str(version.parent), PYTHONDONTWRITEBYTECODE="1"
    )
    watched.wait_ready()
    tasks.note("before")
    wait_until(lambda: total(watched, "jobs_total", "note", "done") == 1, "it is counted")
    address, first = url(watched), the_helper(watched)
    watched.send(signal.SIGHUP)
    wait_until(lambda: total(watched, "reloads_total", "done") == 1, "the new code serves")
    assert total(watched, "jobs_total", "note", "done") == 1
    assert list(scrape(watched)["flask_backend_info"]) == [("support.workload", "1", __version__)]
    wait_until(lambda: helpers(watched) == [the_helper(watched, first)], "the old helper has ended")
    assert re.findall(URL, watched.log) == [address, address]
    version.write_text("raise RuntimeError('this release does not work')")
    watched.send(signal.SIGHUP)
    wait_until(lambda: total(watched, "reloads_total", "refused") == 1, "it is counted")
    tasks.note("after")
    wait_until(lambda: total(watched, "jobs_total", "note", "done") == 2, "it goes on")
    watched.send(signal.SIGTERM)
    watched.assert_clean_exit(0)


def test_a_scrape_during_the_import_of_a_reload_is_answered(supervise, tmp_path):
    slow = tmp_path / "slow"
    supervised = supervise("--metrics", "127.0.0.1:0", workers=1, SLOW_VERSION=str(slow))
    supervised.wait_ready()
    slow.touch()
    supervised.send(signal.SIGHUP)
    wait_until((tmp_path / "slow.2").exists, "the new image imports the app")
    found = scrape(supervised)
    assert found["flask_backend_workers"][QUEUE, "idle"] == 1
    os.kill(the_helper(supervised), signal.SIGKILL)
    host, port = url(supervised).split("/")[2].split(":")
    waiting = http.client.HTTPConnection(host, int(port), timeout=20)
    waiting.request("GET", "/metrics")  # while nobody accepts
    slow.unlink()
    assert waiting.getresponse().status == 200
    waiting.close()


def test_metrics_are_served_during_a_drain_and_end_with_it(watched, tasks, tmp_path):
    tasks.wait_for(str(tmp_path / "go"))
    wait_until(lambda: total(watched, "workers", "busy") == 1, "a worker is busy")
    watched.send(signal.SIGTERM)
    wait_until(lambda: total(watched, "workers", "stopping") == 1, "it drains")
    first = the_helper(watched)
    os.kill(first, signal.SIGKILL)
    assert total(watched, "job_running_seconds_max") > 0
    (tmp_path / "go").touch()
    watched.assert_clean_exit(0)
    with pytest.raises(OSError, match="refused"):
        scrape(watched)


def test_without_a_broker_all_but_the_queues_is_there_after_two_seconds_at_most(watched, broker):
    broker.freeze()
    began = time.monotonic()
    assert total(watched, "broker_up") == 0
    assert 1.5 < time.monotonic() - began < 10
    broker.thaw()
    wait_until(lambda: total(watched, "broker_up") == 1, "the broker answers again")
    broker.kill()
    wait_until(lambda: total(watched, "broker_up") == 0, "the broker is away")
    assert "flask_backend_queue_jobs" not in scrape(watched)
    assert total(watched, "workers_wanted") == 2
    broker.start()
    wait_until(lambda: total(watched, "broker_up") == 1, "the broker is back")
    wait_until(lambda: total(watched, "broker_reconnects_total") == 2, "both workers are, too")


def test_a_frozen_supervisor_is_shown(watched):
    watched.send(signal.SIGSTOP)
    try:
        wait_until(lambda: total(watched, "frozen_seconds") > 0.5, "it is frozen")
    finally:
        watched.send(signal.SIGCONT)
    wait_until(lambda: total(watched, "frozen_seconds") == 0, "it goes on")


def test_the_helper_ends_with_a_killed_supervisor(watched):
    helper = psutil.Process(the_helper(watched))
    watched.workers()
    watched.send(signal.SIGKILL)
    wait_until(lambda: not helper.is_running() or helper.status() == psutil.STATUS_ZOMBIE, "the helper ends")


def test_slow_clients_reach_neither_the_supervisor_nor_the_memory_of_the_helper(watched, tasks):
    host, port = url(watched).split("/")[2].split(":")
    helper = psutil.Process(the_helper(watched))
    assert scrape(watched)
    before = helper.memory_info().rss
    clients = [socket.create_connection((host, int(port)), timeout=20) for _ in range(40)]
    try:
        for client in clients[-20:]:
            client.sendall(b"GET /metrics HTTP/1.1\r\n" + b"x" * 10_000)
        assert scrape(watched)
        tasks.note("meanwhile")
        watched.wait_for_line("note meanwhile")
        assert helper.memory_info().rss < before + (4 << 20)
        assert helper.num_fds() < 100
    finally:
        for client in clients:
            client.close()


def test_a_unix_socket_is_served_replaced_after_a_kill_and_removed_at_the_end(supervise, tmp_path):
    path = tmp_path / "metrics.sock"

    def get():
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            return client.recv(15)

    first = supervise("--metrics", f"unix:{path}", workers=1)
    first.wait_ready()
    assert get() == b"HTTP/1.1 200 OK"
    first.workers()
    first.send(signal.SIGKILL)
    first.wait()
    assert path.exists()
    second = supervise("--metrics", f"unix:{path}", workers=1)
    wait_until(lambda: second.log.count("metrics at ") == 2, "the second one serves")
    assert get() == b"HTTP/1.1 200 OK"
    second.send(signal.SIGTERM)
    assert second.wait() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("address", "code", "message"),
    [
        ("taken", 1, r"cannot serve metrics on 127.0.0.1:\d+: Address already in use; stop the program"),
        ("unix:/no/such/folder/x", 1, "cannot serve metrics on unix:/no/such/folder/x: No such file or directory"),
        ("lots", 2, "'lots' is not an address: expected PORT or HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_used_ends_the_start_with_one_sentence(supervise, address, code, message):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}" if address == "taken" else address
        supervised = supervise("--metrics", address)
        assert supervised.wait() == code
    assert re.search(message, " ".join(supervised.log.split()))
    assert "Traceback" not in supervised.log


def test_without_prometheus_client_the_start_names_the_extra(broker, tmp_path):
    code = "import sys; sys.modules['prometheus_client'] = None\nfrom flask_backend.cli import main; main()"
    command = [sys.executable, "-c", code, "--app", str(APP), "supervise", "--metrics", "0"]
    environment = {**os.environ, "BACKEND_CONNECTION_URI": broker.uri, "PYTHONPATH": str(APP.parent.parent)}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 3
    assert "pip install 'flask-backend[metrics]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_of_the_environment_that_a_reload_cannot_use_costs_only_the_metrics(supervise, tmp_path):
    (tmp_path / ".env").write_text("BACKEND_METRICS=127.0.0.1:0\n")
    supervised = supervise(workers=1)
    supervised.wait_ready()
    assert scrape(supervised)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / ".env").write_text(f"BACKEND_METRICS=127.0.0.1:{taken.getsockname()[1]}\n")
        supervised.send(signal.SIGHUP)
        supervised.wait_for_log("cannot serve metrics on ")
        wait_until(lambda: not helpers(supervised), "the old helper has ended")
        with pytest.raises(OSError, match="refused"):
            scrape(supervised)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
