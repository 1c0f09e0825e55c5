"""The unit under a real systemd: each claim of docs/run/systemd.md."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from instances import APP
from support.waiting import wait_until

DOCS = Path(__file__).parents[2] / "docs" / "run" / "systemd.md"
BROKEN = APP.replace("VERSION = 1", "raise RuntimeError('bad\\ndeploy')")
SLOW = APP.replace("VERSION = 1", "VERSION = 2\ntime.sleep(5)")
# systemd forgets the exit code of a unit that has stopped.
SHOW_END = "ExecStopPost=/bin/echo ended: $SERVICE_RESULT $EXIT_STATUS"


def status_of(instance):
    return instance.show("StatusText")


def wait_for_restart(instance, restarts=1):
    """Wait until systemd has started the supervisor again so often."""
    wait_until(
        lambda: (instance.show("NRestarts"), instance.show("ActiveState")) == (str(restarts), "active"),
        f"it is started again; {instance.describe()}",
    )


def messages(instance):
    return [record["MESSAGE"] for record in instance.journal()]


def is_alive(instance, pid):
    return instance.machine.path(f"/proc/{pid}").exists()


# -- the files -----------------------------------------------------------------------------------------------


def test_systemd_has_no_remarks_on_the_installed_units(machine):
    assert (
        machine.run("systemd-analyze", "verify", "--man=no", "flask-backend@demo.service", "beanstalkd.service") == ""
    )


def test_the_times_of_the_unit_are_those_of_the_docs(instance):
    instance.systemctl("start")
    assert instance.show("WatchdogUSec") == "30s"
    assert (instance.show("TimeoutStartUSec"), instance.show("TimeoutStopUSec")) == ("2min 15s", "30s")
    assert instance.show("WatchdogSignal") == str(signal.SIGKILL.value)


def test_the_exposure_of_the_unit_is_that_of_the_docs(machine):
    found = machine.run("systemd-analyze", "security", "--no-pager", "flask-backend@demo.service", COLUMNS="200")
    exposure = re.search(r"Overall exposure level for \S+: (\S+)", found)[1]
    assert exposure == re.search(r"rates\s+the unit at (\S+) \(of 10", DOCS.read_text())[1]


# -- start ---------------------------------------------------------------------------------------------------


def test_a_start_returns_when_each_queue_has_a_worker_that_has_run_its_hooks(instance):
    instance.systemctl("start")
    assert instance.has("hook")
    assert (instance.show("ActiveState"), instance.show("SubState")) == ("active", "running")
    wait_until(lambda: re.fullmatch(r"2 workers, 0 busy, (0 done/s, )?0 restarts", status_of(instance)), "its status")


@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [
        ("app", 3, "RuntimeError: bad\ndeploy"),
        ("setting", 2, "Invalid value for '--workers'"),
        ("hook", 3, "RuntimeError: no such channel"),
    ],
)
def test_a_start_that_cannot_succeed_fails_once_with_its_reason_in_the_journal(instance, how, code, reason):
    if how == "app":
        instance.release(BROKEN)
    elif how == "setting":
        instance.set(BACKEND_WORKERS="lots")
    else:
        instance.release(APP.replace('(here / "hook").touch()', 'raise RuntimeError("no such channel")'))
    assert instance.try_systemctl("start").returncode != 0
    assert instance.show("ActiveState") == "failed"
    assert (instance.show("Result"), instance.show("ExecMainStatus")) == ("exit-code", str(code))
    assert instance.show("NRestarts") == "0"
    assert reason in "\n".join(messages(instance))


def test_a_mistyped_instance_fails_at_once(machine):
    done = machine.try_to("systemctl", "start", "flask-backend@mistyped")
    assert done.returncode != 0
    assert "Assertion failed" in done.stdout
    assert machine.run("systemctl", "show", "--property=NRestarts", "--value", "flask-backend@mistyped") == "0\n"


def test_a_watchdog_that_is_armed_does_not_cut_a_slow_hook(instance):
    """systemd arms it at the first sign of life; the loop turns while the hooks run."""
    instance.edit("WatchdogSec=2")
    instance.release(APP.replace('(here / "hook").touch()', "time.sleep(5)"))
    instance.systemctl("start")
    assert instance.show("NRestarts") == "0"


# -- status and health, as root and as its user --------------------------------------------------------------


def test_the_status_counts_workers_jobs_and_restarts(instance):
    instance.systemctl("start")
    instance.schedule("wait('go')", "note.map(['x'] * 1000)")
    instance.read("go.started")
    wait_until(lambda: re.fullmatch(r"2 workers, 1 busy, [1-9]\d* done/s, 0 restarts", status_of(instance)), "a rate")
    instance.machine.run("kill", "-KILL", str(instance.workers()[0]))
    wait_until(lambda: re.fullmatch(r"2 workers, .* 1 restart", status_of(instance)), "a restart")


def test_root_sees_each_instance_and_its_health(make):
    one, two = make("seen-one"), make("seen-two")
    for instance in (one, two):
        instance.systemctl("start")
    seen = json.loads(one.command("status", "--json").stdout)
    assert {(each["pid"], each["state"], each["queues"][0]["name"]) for each in seen} == {
        (each.pid, "running", each.queue) for each in (one, two)
    }
    text = one.command("status").stdout
    assert one.queue in text
    assert two.queue in text
    healthy = one.command("health")
    assert healthy.returncode == 0
    assert healthy.stdout.splitlines() == [
        f"supervisor {pid} is alive and ready: running, 2 workers, 0 busy" for pid in sorted([one.pid, two.pid])
    ]
    two.kill(signal.SIGSTOP)
    sick = one.command("health", "--live")
    assert sick.returncode == 1
    assert re.search(rf"supervisor {two.pid} has been frozen for \d+ s", sick.stdout)
    assert one.command("health", "--pid", str(one.pid)).returncode == 0


def test_a_check_in_the_unit_sees_its_own_instance_only(make):
    """As the user of the instance: the page is in a folder that only this user can read."""
    one, two = make("own-one"), make("own-two")
    check = "ExecStartPost=/srv/%i/venv/bin/flask-backend health --ready"
    for instance in (one, two):
        instance.edit(check)
        instance.systemctl("start")
    for instance in (one, two):
        (line,) = [text for text in messages(instance) if text.endswith("is ready: running, 2 workers, 0 busy")]
        assert line.startswith(f"supervisor {instance.pid} ")


# -- stop ----------------------------------------------------------------------------------------------------


def test_a_stop_waits_for_the_running_task_and_counts_as_success(instance):
    instance.edit(SHOW_END)
    instance.systemctl("start")
    instance.schedule("wait('go')")
    instance.read("go.started")
    instance.systemctl("stop", "--no-block")
    wait_until(lambda: instance.show("ActiveState") == "deactivating", "the stop has begun")
    wait_until(lambda: status_of(instance) == "Stopping: SIGTERM", "its status")
    assert not instance.has("go.finished")
    instance.touch("go")
    wait_until(lambda: instance.show("ActiveState") == "inactive", "it has stopped")
    assert instance.has("go.finished")
    assert "ended: success 0" in messages(instance)
    assert instance.count("ready") == instance.count("reserved") == 0


def test_a_task_that_outlasts_the_drain_timeout_goes_back_to_its_queue_and_that_is_success(instance):
    instance.set(BACKEND_WORKERS="1", BACKEND_DRAIN_TIMEOUT="1")
    instance.edit(SHOW_END)
    instance.systemctl("start")
    instance.schedule("wait('go')")
    instance.read("go.started")
    instance.systemctl("stop")
    assert (instance.show("ActiveState"), instance.show("Result")) == ("inactive", "success")
    assert "ended: success 4" in messages(instance)
    assert instance.count("ready") == 1


def test_a_drain_timeout_longer_than_that_of_the_unit_is_waited_for(instance):
    instance.set(BACKEND_WORKERS="1", BACKEND_DRAIN_TIMEOUT="600")
    instance.edit("TimeoutStopSec=2")
    instance.systemctl("start")
    instance.schedule("wait('go')", "wait('later')")
    instance.read("go.started")
    instance.systemctl("stop", "--no-block")
    wait_until(lambda: since_s(instance, "StateChangeTimestampMonotonic") > 6, "three times the unit's timeout")
    assert instance.show("ActiveState") == "deactivating"
    instance.touch("go")
    wait_until(lambda: instance.show("ActiveState") == "inactive", "it has stopped")
    assert instance.has("go.finished")
    assert instance.show("Result") == "success"


def test_a_supervisor_that_freezes_while_it_drains_is_killed(instance):
    instance.set(BACKEND_WORKERS="1", BACKEND_DRAIN_TIMEOUT="600")
    instance.edit("TimeoutStopSec=2")
    instance.systemctl("start")
    instance.schedule("wait('go')")
    instance.read("go.started")
    instance.systemctl("stop", "--no-block")
    wait_until(lambda: status_of(instance) == "Stopping: SIGTERM", "it drains")
    instance.kill(signal.SIGSTOP)
    wait_until(lambda: instance.show("ActiveState") == "failed", "it is killed")
    assert instance.show("Result") == "timeout"
    assert instance.count("ready") == 1


def since_s(instance, name):
    """Return how long ago something happened, by a property of the unit."""
    now_s = float(instance.machine.path("/proc/uptime").read_text().split()[0])
    return now_s - int(instance.show(name)) / 1e6


# -- crashes and freezes -------------------------------------------------------------------------------------


def test_a_killed_supervisor_ends_with_its_workers_and_is_started_again(instance):
    instance.systemctl("start")
    instance.schedule("wait('go')")
    instance.read("go.started")
    pids = [instance.pid, *instance.workers()]
    assert len(pids) == 3
    instance.kill(signal.SIGKILL)
    wait_until(lambda: not any(is_alive(instance, pid) for pid in pids), "they are gone")
    wait_for_restart(instance)
    wait_until(lambda: instance.count("reserved") == 1, "the job runs again")
    instance.touch("go")
    wait_until(lambda: instance.count("reserved") == 0, "it is done")


def test_a_frozen_supervisor_is_killed_with_its_workers_and_started_again(instance):
    instance.edit("WatchdogSec=3")
    instance.systemctl("start")
    instance.schedule("wait('go')")
    instance.read("go.started")
    pids = [instance.pid, *instance.workers()]
    instance.kill(signal.SIGSTOP)
    wait_until(lambda: not any(is_alive(instance, pid) for pid in pids), "they are gone")
    wait_for_restart(instance)
    assert any("Watchdog timeout (limit 3s)!" in text for text in messages(instance))
    wait_until(lambda: instance.count("reserved") == 1, "the job runs again")
    instance.touch("go")
    wait_until(lambda: instance.count("reserved") == 0, "it is done")


def test_an_idle_and_a_busy_supervisor_keep_the_watchdog_satisfied(instance):
    instance.edit("WatchdogSec=1")
    instance.systemctl("start")
    pid = instance.pid
    instance.schedule("note.map(['x'] * 2000)")
    wait_until(lambda: since_s(instance, "ActiveEnterTimestampMonotonic") > 5, "five times the watchdog's patience")
    assert (instance.pid, instance.show("NRestarts")) == (pid, "0")


# -- reload --------------------------------------------------------------------------------------------------


def test_a_reload_under_load_serves_the_new_release_without_a_gap_or_a_lost_job(instance):
    instance.systemctl("start")
    pid = instance.pid
    instance.schedule("note.map(range(3000))")
    wait_until(instance.ledger, "the first jobs are done")
    instance.release(APP.replace("VERSION = 1", "VERSION = 2"), number=2)
    instance.systemctl("reload")
    assert (instance.pid, instance.show("ActiveState")) == (pid, "active")
    instance.schedule("note.map(range(3000, 3100))")
    wait_until(lambda: len(instance.ledger()) >= 3100, "all jobs are done")
    numbers = [int(line.split()[0]) for line in instance.ledger()]
    assert sorted(numbers) == list(range(3100))
    versions = dict(line.split() for line in instance.ledger())
    assert {versions[str(number)] for number in range(3000, 3100)} == {"2"}
    assert "generation 1 serves" in messages(instance)
    assert re.match("2 workers, ", status_of(instance))


def test_a_refused_reload_fails_with_the_reason_and_the_old_code_goes_on(instance):
    instance.systemctl("start")
    pid = instance.pid
    instance.release(BROKEN, number=2)
    assert instance.try_systemctl("reload").returncode != 0
    assert (instance.pid, instance.show("ActiveState")) == (pid, "active")
    told = "\n".join(messages(instance))
    assert "RuntimeError: bad\ndeploy" in told
    assert "the old app goes on" in told
    assert "reload failed, the old app goes on: the check of the new app" in status_of(instance)
    instance.schedule("note(1)")
    assert instance.read("ledger") == "1 1\n"
    instance.release(APP, number=3)
    instance.systemctl("reload")
    wait_until(lambda: "reload failed" not in status_of(instance), "the next reload has succeeded")


@pytest.mark.parametrize("how", ["reload", "kill"])
def test_a_reload_whose_import_is_slower_than_the_watchdog_is_not_cut_and_the_watchdog_stays(instance, how):
    instance.edit("WatchdogSec=2")
    instance.systemctl("start")
    pid = instance.pid
    instance.release(SLOW, number=2)
    if how == "reload":
        instance.systemctl("reload")
    else:
        instance.kill(signal.SIGHUP)
        wait_until(lambda: instance.show("ActiveState") == "reloading", "it imports the new code")
        wait_until(lambda: instance.show("ActiveState") == "active", "it serves")
    assert (instance.pid, instance.show("NRestarts")) == (pid, "0")
    instance.schedule("note(1)")
    assert instance.read("ledger") == "1 2\n"
    assert instance.show("WatchdogUSec") == "2s"
    instance.kill(signal.SIGSTOP)
    wait_until(lambda: not is_alive(instance, pid), "the watchdog still watches")
    wait_for_restart(instance)


# -- two instances, and the sandbox --------------------------------------------------------------------------


def test_two_instances_of_one_app_cannot_reach_each_other(make):
    one, two = make("twin-one"), make("twin-two")
    for instance in (one, two):
        instance.systemctl("start")
    assert [instance.show("User") for instance in (one, two)] == ["fb-twin-one", "fb-twin-two"]
    uids = {instance.machine.run("stat", "--format=%u", f"/proc/{instance.pid}").strip() for instance in (one, two)}
    assert len(uids) == 2
    assert "0" not in uids
    parents = (
        "/var/lib/flask-backend",
        "/var/lib/private/flask-backend",
        "/run/flask-backend",
        "/run/private/flask-backend",
    )
    one.schedule(f"write(*(f'{{parent}}/twin-two/x' for parent in {parents}))")
    answers = one.read("written").splitlines()
    assert len(answers) == len(parents)
    assert not any(answer.endswith(" written") for answer in answers), answers
    one.schedule(f"send(15, {two.pid})")
    assert one.read("answer") == "Operation not permitted"
    one.systemctl("stop")
    assert two.show("ActiveState") == "active"


def test_a_second_name_of_an_app_runs_a_second_supervisor_of_it(make):
    one, two = make("linked"), make("linked-slow")
    one.machine.run("ln", "-sfn", one.name, f"/srv/{two.name}")
    for instance in (one, two):
        instance.systemctl("start")
    seen = json.loads(one.command("status", "--json").stdout)
    assert {(each["pid"], each["queues"][0]["name"]) for each in seen} == {(one.pid, one.queue), (two.pid, one.queue)}


def test_an_app_can_share_a_user_and_a_folder_with_its_web_app(instance):
    """With the override of the docs: start, tasks, reload and stop work as with a dynamic user."""
    machine = instance.machine
    machine.run("useradd", "--system", "demo")
    machine.run("install", "-d", "--owner=demo", "/srv/media")
    override = re.search(r"(?s)# systemctl edit flask-backend@demo\n +\[Service\]\n(.*?)```", DOCS.read_text())[1]
    instance.edit(*(line.strip() for line in override.splitlines()), SHOW_END)
    instance.systemctl("start")
    assert machine.run("stat", "--format=%U", f"/proc/{instance.pid}") == "demo\n"
    instance.schedule("write('/srv/media/x', '/srv/x')")
    wait_until(machine.path("/srv/media/x").exists, f"the task has written; {instance.describe()}")
    pid = instance.pid
    instance.systemctl("reload")
    assert instance.pid == pid
    assert "generation 1 serves" in messages(instance)
    assert instance.command("health", "--pid", str(pid)).returncode == 0
    instance.systemctl("stop")
    assert "ended: success 0" in messages(instance)
    assert not machine.path("/srv/x").exists()


def test_tasks_may_write_to_their_state_and_to_tmp_and_nowhere_else(instance):
    instance.systemctl("start")
    home = f"/var/lib/flask-backend/{instance.name}"
    instance.schedule(f"write('{home}/x', '/tmp/x', '/var/tmp/x', '/srv/x', '/etc/x', '/home/x', '/run/x')")
    assert instance.read("written").splitlines() == [
        f"{home}/x written",
        "/tmp/x written",  # noqa: S108  # the container's
        "/var/tmp/x written",  # noqa: S108  # likewise
        "/srv/x Read-only file system",
        "/etc/x Read-only file system",
        "/home/x Permission denied",
        "/run/x Permission denied",
    ]
    assert not instance.machine.path("/tmp/x").exists()  # noqa: S108  # likewise


def test_tasks_and_their_programs_do_not_see_what_systemd_has_passed_to_the_supervisor(instance):
    instance.systemctl("start")
    instance.schedule("environment()")
    seen = instance.read("environment")
    assert "STATE_DIRECTORY" in seen
    assert "NOTIFY_SOCKET" not in seen
    assert "WATCHDOG" not in seen


# -- the journal ---------------------------------------------------------------------------------------------


def test_the_journal_has_a_priority_a_record_and_fields_for_each_log_line(instance):
    instance.set(BACKEND_WORKERS="1")
    instance.systemctl("start")
    instance.schedule("fail()")

    def of(part):
        return [record for record in instance.journal() if part in record["MESSAGE"]]

    (failure,) = wait_until(lambda: of("ValueError: two\nlines"), f"the failure is logged; {instance.describe()}")
    assert failure["PRIORITY"] == "3"
    assert "Traceback" in failure["MESSAGE"]
    assert failure["BACKEND_TASK"] == "fail"
    assert failure["BACKEND_QUEUE"] == instance.queue
    assert failure["SYSLOG_IDENTIFIER"] == "flask-backend"
    assert [record["PRIORITY"] for record in of("ready: ")] == ["6"]
    instance.machine.run("kill", "-KILL", str(instance.workers()[0]))
    (death,) = wait_until(lambda: of("; replaced "), "the death is logged")
    assert death["PRIORITY"] == "3"
    instance.release(BROKEN, number=2)
    instance.try_systemctl("reload")
    assert [record["PRIORITY"] for record in of("reload failed") if record["_PID"] == str(instance.pid)] == ["2"]
    only_errors = [record["MESSAGE"] for record in instance.journal("--priority=err")]
    assert any("two\nlines" in text for text in only_errors)
    assert not any(text.startswith("ready: ") for text in only_errors)


def test_a_line_that_a_task_prints_is_in_the_journal_at_once(instance):
    instance.release(APP.replace('(here / f"{name}.started").touch()', 'print("begun", name)'))
    instance.systemctl("start")
    instance.schedule("wait('go')")
    wait_until(lambda: "begun go" in messages(instance), f"it is there; {instance.describe()}")


# -- the broker ----------------------------------------------------------------------------------------------


def test_the_drop_in_keeps_a_killed_broker_away_for_a_second_only(machine, instance):
    assert machine.run("systemctl", "show", "--property=LimitNOFILE", "--value", "beanstalkd") == "65536\n"
    instance.systemctl("start")
    pid = instance.pid
    machine.run("systemctl", "kill", "--signal=KILL", "beanstalkd")
    wait_until(
        lambda: machine.run("systemctl", "show", "--property=ActiveState", "--value", "beanstalkd") == "active\n",
        "the broker is back",
    )
    instance.schedule("note(1)")
    assert instance.read("ledger") == "1 1\n"
    assert instance.pid == pid
