"""`--workers MIN..MAX`: with a real broker, a real supervisor and the real helper that looks at the queues."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.supervised import title
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

from flask_backend.cli import main
from flask_backend.system import page

pytestmark = pytest.mark.any_broker

APP = Path(__file__).parents[1] / "support" / "scaled_app.py"
HELPER = "flask-backend: helper [looks at the queues]"


@pytest.fixture
def scaled(supervise):
    """Start a supervisor whose queue has from 1 to 3 workers, and which decides soon."""

    def start(*args, **options):
        args = args or ("--workers", "1..3")
        supervised = supervise(*args, app=str(APP), **options)
        supervised.wait_for_log("ready: ")
        wait_until(lambda: helpers(supervised), "a helper looks at the queues")
        return supervised

    return start


def helpers(supervised) -> list[int]:
    return [pid for pid in supervised.children() if title(pid) == HELPER]


def looks(broker) -> int:
    with broker.client() as client:
        return client.stats()["cmd-stats-tube"]


def wait_for_looks(broker, count: int) -> None:
    before = looks(broker)
    wait_until(lambda: looks(broker) - before >= count, f"{count} looks at the queue")


@pytest.fixture
def occupy(tasks, tmp_path):
    """Schedule jobs that end when `release` is called."""

    def occupy(count):
        for _ in range(count):
            tasks.wait_for(str(tmp_path / "go"))

    occupy.release = (tmp_path / "go").touch
    return occupy


def stop(supervised) -> None:
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_queue_grows_under_load_to_its_maximum_and_shrinks_to_its_minimum_when_idle(scaled, occupy):
    supervised = scaled()
    occupy(5)
    supervised.wait_for_line("begin waited", times=3)
    wait_for_looks(supervised.broker, 15)
    assert title(supervised.pid) == "flask-backend: master [1 queue, 3 workers]"
    assert supervised.log.count(": one worker more: jobs were ready") == 2
    [shown] = page.find(supervised.pid)[supervised.pid].page.queues
    assert (shown.wanted, shown.minimum, shown.maximum) == (3, 1, 3)
    told = CliRunner().invoke(main, ["status"])
    assert re.search(rf"^{QUEUE} +3 \(1\.\.3\) +3 ", told.output, re.MULTILINE), told.output
    occupy.release()
    supervised.wait_for_log(f"{QUEUE}=1 (1..3): one worker fewer: not all were needed for")
    supervised.wait_reserving(1)
    assert supervised.log.count(": one worker fewer: ") == 2
    assert supervised.ledger.count("waited") == 5
    stop(supervised)


def test_a_paused_queue_does_not_grow(scaled, occupy, broker):
    supervised = scaled()
    with broker.client(QUEUE) as client:
        client.pause_tube(QUEUE, 600)
        occupy(3)
        wait_for_looks(broker, 15)
        assert len(supervised.workers()) == 1
        client.pause_tube(QUEUE, 0)
    supervised.wait_for_log(f"{QUEUE}=3 (1..3): one worker more")
    occupy.release()
    stop(supervised)


def test_each_queue_has_a_range_of_its_own_and_a_fixed_one_is_not_looked_at(scaled, occupy, broker):
    supervised = scaled("--queue", f"{QUEUE}=1..2", "--queue", f"{INBOX}=1")
    broker.put(INBOX, b'"sleep"')
    broker.put(INBOX, b'"sleep"')
    occupy(3)
    supervised.wait_for_log(f"{QUEUE}=2 (1..2): one worker more")
    wait_for_looks(broker, 15)
    assert f"{INBOX}=2" not in supervised.log
    occupy.release()
    supervised.send(signal.SIGQUIT)
    assert supervised.wait() == 4


def test_a_fixed_number_of_workers_needs_no_helper(supervise):
    supervised = supervise("--workers", "2..2", app=str(APP), workers=2)
    supervised.wait_ready()
    assert supervised.children() == supervised.workers()
    stop(supervised)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_helper_that_dies_or_hangs_is_replaced(scaled, occupy, number):
    supervised = scaled()
    [first] = helpers(supervised)
    os.kill(first, number)
    supervised.wait_for_log("the process that looks at the queues ")
    wait_until(lambda: helpers(supervised) not in ([], [first]), "there is another one")
    what = "was killed by signal 9" if number is signal.SIGKILL else "has hung, and was killed"
    assert f"the process that looks at the queues {what}" in supervised.log
    occupy(2)
    supervised.wait_for_log(f"{QUEUE}=2 (1..3): one worker more")
    occupy.release()
    stop(supervised)


def test_the_helper_ends_with_its_supervisor(scaled):
    supervised = scaled()
    [helper] = helpers(supervised)
    assert helper in supervised.seen
    supervised.send(signal.SIGKILL)
    supervised.assert_clean_exit(-signal.SIGKILL)  # none of those seen is left


@pytest.mark.parametrize("outage", ["restarted", "frozen"])
def test_without_an_answer_the_sizes_stay_and_with_the_broker_they_change_again(scaled, occupy, broker, outage):
    supervised = scaled()
    [helper] = helpers(supervised)
    if outage == "frozen":
        occupy(1)
        supervised.wait_for_line("begin waited")
        broker.freeze()
    else:
        broker.kill()
    supervised.wait_for_log("no answer about the queues: the numbers of workers stay as they are")
    assert len(supervised.workers()) == 1
    if outage == "frozen":
        broker.thaw()
    else:
        broker.start()
    supervised.wait_for_log("there are answers about the queues again")
    occupy(3)
    supervised.wait_for_log(f"{QUEUE}=3 (1..3): one worker more")
    assert helpers(supervised) == [helper]
    occupy.release()
    stop(supervised)


def test_a_reload_keeps_the_size_and_the_moved_bounds(scaled, occupy):
    supervised = scaled("--workers", "1..2")
    supervised.send(signal.SIGTTIN)
    supervised.wait_for_log(f"now {QUEUE}=2 (2..3)")
    occupy(4)
    supervised.wait_for_log(f"{QUEUE}=3 (2..3): one worker more")
    [helper] = helpers(supervised)
    supervised.send(signal.SIGHUP)
    supervised.wait_for_log(f"ready: {QUEUE}=3 (2..3)")
    wait_until(lambda: len(helpers(supervised)) == 1 and helpers(supervised) != [helper], "a helper of the new code")
    occupy.release()
    supervised.wait_for_line("waited", times=4)
    supervised.send(signal.SIGTTOU)
    supervised.wait_for_log(f"now {QUEUE}=2 (1..2)")
    stop(supervised)


def test_a_queue_whose_new_worker_takes_long_to_start_grows_no_further(scaled, occupy, tmp_path):
    """The first worker has run its hook; those of the others wait."""
    supervised = scaled("--workers", "1..3", HOOK_WAITS_WHILE=str(tmp_path / "gate"))
    (tmp_path / "gate").touch()
    occupy(4)
    supervised.wait_for_log(f"{QUEUE}=2 (1..3): one worker more")
    wait_for_looks(supervised.broker, 15)
    assert f"{QUEUE}=3" not in supervised.log
    (tmp_path / "gate").unlink()
    supervised.wait_for_log(f"{QUEUE}=3 (1..3): one worker more")
    occupy.release()
    stop(supervised)


def test_a_new_worker_that_cannot_start_does_not_end_those_that_work(scaled, occupy, tmp_path):
    """As if a database allowed no further connection, while the only worker has a job that takes hours."""
    options = ("--boot-timeout", "1", "--give-up-after", "1")
    supervised = scaled("--workers", "1..2", *options, HOOK_WAITS_WHILE=str(tmp_path / "gate"))
    (tmp_path / "gate").touch()
    occupy(2)
    supervised.wait_for_log("; not replaced: the others are more than the minimum")
    (tmp_path / "gate").unlink()
    supervised.wait_for_line("begin waited", times=2)
    assert "giving up" not in supervised.log
    occupy.release()
    stop(supervised)


def test_two_supervisors_share_a_load(scaled, occupy, broker):
    both = [scaled(), scaled()]
    occupy(3)
    wait_until(lambda: broker.count(QUEUE, "reserved") == 3, "each job has a worker")
    wait_for_looks(broker, 25)
    assert 3 <= sum(len(each.workers()) for each in both) <= 4
    occupy.release()
    for each in both:
        stop(each)


class CpuGroup:
    """A real control group of version 1 or 2, with a CPU quota."""

    ROOT = Path("/sys/fs/cgroup")

    def __init__(self):
        self.is_version_2 = (self.ROOT / "cgroup.controllers").exists()
        self.folder = (self.ROOT if self.is_version_2 else self.ROOT / "cpu") / f"flask-backend-test-{os.getpid()}"
        self.folder.mkdir()

    def limit(self, cpus: float) -> None:
        quota = str(int(cpus * 100_000))
        if self.is_version_2:
            (self.folder / "cpu.max").write_text(f"{quota} 100000")
        else:
            (self.folder / "cpu.cfs_period_us").write_text("100000")
            (self.folder / "cpu.cfs_quota_us").write_text(quota)

    def runner(self) -> list[str]:
        """The beginning of a command whose process is in the group."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"]


@pytest.fixture
def cpu_group():
    group = None
    try:
        group = CpuGroup()
        group.limit(1.0)
    except OSError as error:
        if group:
            group.folder.rmdir()
        pytest.skip(f"no control group with a CPU quota can be made here: {error}")
    yield group
    wait_until(lambda: not (group.folder / "cgroup.procs").read_text(), "the group is empty")
    group.folder.rmdir()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a quota of more than one CPU needs two")
def test_the_cpu_quota_is_the_default_at_the_start_and_at_a_reload(cpu_group, command):
    cpu_group.limit(0.9)
    running = command("supervise", "--queue", QUEUE, under=cpu_group.runner())
    running.wait_for_log(f"ready: {QUEUE}=1\n")
    cpu_group.limit(1.1)
    running.send(signal.SIGTTIN)
    running.send(signal.SIGHUP)
    running.wait_for_log(f"ready: {QUEUE}=2\n")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
