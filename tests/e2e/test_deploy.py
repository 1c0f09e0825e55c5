"""The files in deploy/: the unit as systemd reads it, and the supervisor under systemd and in a container."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import greenstalk
import psutil
import pytest
from support.beanstalkd import free_port
from support.containers import instructions
from support.manager import Manager
from support.waiting import wait_until

from flask_backend.cli.commands.reload import MARGIN_S
from flask_backend.cli.commands.supervise import supervise
from flask_backend.config import URI_KEY

pytestmark = pytest.mark.any_broker

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "flask-backend@.service"
DOCKER = DEPLOY / "docker"
COMMAND = Path(sys.executable).with_name("flask-backend")
QUEUE = "com.example/default"
GATED = "com.example/gated"

APP = f"""
import os, subprocess, time
from pathlib import Path
from flask import Flask
from flask_backend import Backend

app = Flask(__name__)
backend = Backend(app)
here = Path(__file__).parent

def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.01)

(here / "importing").touch()
if (here / "slow-import").exists():
    wait_for("never")

@backend.task({QUEUE!r})
def environment(name):
    children = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    (here / "part").write_text("\\n".join(os.environ) + children)
    (here / "part").replace(here / name)

@backend.task({QUEUE!r})
def wait(name):
    (here / "started").touch()
    wait_for(name)
    (here / "finished").touch()

@backend.task({QUEUE!r})
def leave_orphan(name):
    script = "echo > left; until test -e $0; do sleep 0.02; done"
    subprocess.run(["sh", "-c", 'setsid sh -c "$1" "$2" &', "sh", script, name], cwd=here, check=True)

@backend.before_first_task({GATED!r})
def gate():
    wait_for("gate")

@backend.task({GATED!r})
def gated(): pass
"""


# -- helpers -------------------------------------------------------------------------------------------------


def tool(name):
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin") or pytest.skip(f"no {name} here")


def children_of(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def title(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")
    except OSError:
        return ""


@pytest.fixture
def processes():
    """Kill processes that a test leaves running."""
    with ExitStack() as stack:

        def start(command, **options):
            process = subprocess.Popen([str(part) for part in command], **options)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def start(processes, broker, app):
    """Start the supervisor of the app, on its own or at the end of a longer command."""

    def start(*queues, before=(), **environment):
        variables = {"FLASK_APP": "app", URI_KEY: broker.uri, "BACKEND_QUEUES": " ".join(queues)}
        return processes([*before, COMMAND, "supervise"], cwd=app, env=os.environ | variables | environment)

    return start


@pytest.fixture
def put(broker):
    def put(endpoint, *args):
        with broker.client(QUEUE) as client:
            return client.put(json.dumps({"endpoint": endpoint, "args": args}).encode())

    return put


# -- systemd: the files --------------------------------------------------------------------------------------


def settings(text):
    """Read a unit's assignments; the last one of a name counts."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] not in "#;")


def systemd_analyze(*arguments):
    command = [tool("systemd-analyze"), "--no-pager", *map(str, arguments)]
    # Neither colours nor a width that cuts lines.
    environment = os.environ | {"LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_systemd_has_no_remarks_on_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert "ExecStart=/srv/%i/venv/bin/flask-backend supervise" in text
    unit.write_text(text.replace("/srv/%i/venv/bin/flask-backend", str(COMMAND)))

    result = systemd_analyze("verify", unit)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def remarks_on_instances(folder, *names):
    """Return systemd's remarks on instances of the unit. A name that is not strictly valid gets no dynamic user."""
    units = [folder / UNIT.name.replace("@", f"@{name}") for name in names]
    for unit in units:
        unit.write_text(UNIT.read_text().replace("/srv/%i/venv/bin/flask-backend", str(COMMAND)))
    return systemd_analyze("verify", *units).stderr


def test_each_instance_has_its_own_user_for_every_name_that_the_docs_allow(tmp_path):
    unit = settings(UNIT.read_text())
    assert (unit["DynamicUser"], unit["User"]) == ("yes", "fb-%i")
    docs = (DEPLOY.parent / "docs" / "run" / "systemd.md").read_text()
    longest = int(
        re.search(r"The name of an instance has 1 to (\d+) characters: letters, digits, `-` and `_`", docs)[1]
    )

    assert remarks_on_instances(tmp_path, "x", "7", "-", "_", "demo-slow", "Shop_2", "x" * longest) == ""
    too_long, with_dot = "x" * (longest + 1), "shop.example"
    remarks = remarks_on_instances(tmp_path, too_long, with_dot)
    for name in (too_long, with_dot):
        assert f"'fb-{name}', which does not match strict user/group name rules" in remarks


def test_systemd_has_no_remarks_on_the_drop_in_for_beanstalkd(tmp_path):
    shutil.copytree(DEPLOY / "systemd" / "beanstalkd.service.d", tmp_path / "beanstalkd.service.d")
    unit = tmp_path / "beanstalkd.service"
    unit.write_text(f"[Service]\nExecStart={tool('beanstalkd')}\n")

    result = systemd_analyze("verify", unit)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_exposure_of_the_unit_is_at_most_2(tmp_path):
    unit = shutil.copy(UNIT, tmp_path)

    result = systemd_analyze("security", "--offline=yes", "--threshold=20", unit)  # in tenths

    assert result.returncode == 0, result.stderr
    exposure = re.search(r"Overall exposure level for flask-backend@\S*: (\d+\.\d+)", result.stdout)
    assert exposure, result.stdout
    assert float(exposure[1]) <= 2.0


def test_threshold_of_the_exposure_is_one_that_can_be_missed(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text("[Service]\nExecStart=/bin/true\n")

    assert systemd_analyze("security", "--offline=yes", "--threshold=20", unit).returncode != 0


def test_the_unit_reloads_by_the_command_and_gives_it_time():
    boot_s = next(option.default for option in supervise.params if option.name == "boot_timeout")
    unit = settings(UNIT.read_text())

    assert unit["ExecReload"] == unit["ExecStart"].removesuffix("supervise") + "reload --pid $MAINPID"
    assert float(unit["TimeoutStartSec"]) > 2 * boot_s + MARGIN_S
    assert unit["RuntimeDirectory"] == "flask-backend/%i"


def test_every_variable_in_the_files_is_read():
    known = {option.envvar for option in supervise.params} | {URI_KEY}
    texts = {path: path.read_text() for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert {(path, name) for path, text in texts.items() for name in re.findall(r"BACKEND_\w+", text)} >= {
        (DEPLOY / "systemd" / "flask-backend.env.example", URI_KEY)
    }
    assert {name for text in texts.values() for name in re.findall(r"BACKEND_\w+", text)} <= known


# -- systemd: the protocol -----------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    manager = Manager(tmp_path if request.param == "path" else None)
    yield manager
    manager.close()


def test_ready_is_reported_when_every_queue_has_a_ready_worker_and_stopping_when_it_stops(start, put, app, manager):
    supervisor = start(f"{QUEUE}=2", f"{GATED}=1", NOTIFY_SOCKET=manager.variable)
    put("environment", "seen")
    wait_until((app / "seen").exists, "a worker of the first queue has run a task")
    assert manager.has_heard_nothing()

    (app / "gate").touch()
    assert manager.next_change() == {"READY": "1"}
    # The second worker of the first queue may be ready later than the one of the other queue.
    rate = r"(\S+ done/s, )?"
    while not re.fullmatch(rf"3 workers, 0 busy, {rate}0 restarts", status := manager.next_change()["STATUS"]):
        assert re.fullmatch(rf"\d of 3 workers ready, 0 busy, {rate}0 restarts", status)

    victim = next(pid for pid in children_of(supervisor.pid) if GATED in title(pid))
    os.kill(victim, signal.SIGKILL)
    while not re.fullmatch(rf"2 of 3 workers ready, 0 busy, {rate}1 restart", status):
        status = manager.next_change()["STATUS"]
    while not re.fullmatch(rf"3 workers, 0 busy, {rate}1 restart", status):
        status = manager.next_change()["STATUS"]

    supervisor.send_signal(signal.SIGTERM)
    while not (change := manager.next_change()).keys() >= {"STOPPING"}:
        assert change.keys() == {"STATUS"}
    assert change == {"STOPPING": "1", "STATUS": "Stopping: SIGTERM"}
    assert supervisor.wait(20) == 0
    assert manager.has_heard_nothing()


def wait_for(manager, name):
    """Return the next message with this variable; others may precede it."""
    while name not in (message := manager.next()):
        pass
    return message


def test_a_reload_is_reported_and_a_failed_one_is_in_the_status(start, app, manager):
    (app / "gate").touch()
    # Longer than the test, so that the only signs of life are those that a reload needs.
    patience = 10**9
    supervisor = start(f"{GATED}=1", NOTIFY_SOCKET=manager.variable, WATCHDOG_USEC=str(patience))
    assert manager.next() == {"WATCHDOG": "1", "WATCHDOG_USEC": str(patience)}
    assert manager.next() == {"READY": "1"}
    assert manager.next() == {"STATUS": "1 worker, 0 busy, 0 restarts"}

    supervisor.send_signal(signal.SIGHUP)
    reloading = wait_for(manager, "RELOADING")
    assert 0 < int(reloading.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert reloading == {"RELOADING": "1", "WATCHDOG": "1", "WATCHDOG_USEC": str(patience + 2 * 60 * 10**6)}
    assert manager.next() == {"WATCHDOG": "1", "WATCHDOG_USEC": str(patience)}
    assert manager.next() == {"READY": "1"}
    assert manager.next() == {"STATUS": "1 worker, 0 busy, 0 restarts"}

    (app / "app.py").write_text("raise RuntimeError('bad deploy')")
    supervisor.send_signal(signal.SIGHUP)
    status = ""
    while "; reload failed, the old app goes on: the check of the new app" not in status:
        status = wait_for(manager, "STATUS")["STATUS"]
    assert status.startswith("1 worker, 0 busy, ")

    supervisor.send_signal(signal.SIGTERM)
    assert wait_for(manager, "STOPPING")["STATUS"] == "Stopping: SIGTERM"
    assert manager.next().keys() == {"EXTEND_TIMEOUT_USEC"}
    assert supervisor.wait(20) == 0


def test_a_supervisor_that_is_frozen_gives_no_sign_of_life(start, app, manager):
    (app / "gate").touch()
    supervisor = start(f"{GATED}=1", NOTIFY_SOCKET=manager.variable, WATCHDOG_USEC="1000000")
    wait_for(manager, "READY")
    for _ in range(3):
        wait_for(manager, "WATCHDOG")
    os.kill(supervisor.pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(supervisor.pid).status() == psutil.STATUS_STOPPED, "it is stopped")
    manager.unread()
    assert not manager.has_message_within(2.0)
    os.kill(supervisor.pid, signal.SIGCONT)
    wait_for(manager, "WATCHDOG")


def test_stopping_before_ready_never_reports_ready(start, app, manager):
    supervisor = start(f"{GATED}=1", NOTIFY_SOCKET=manager.variable)
    wait_until(lambda: children_of(supervisor.pid), "a worker is in its hook")

    supervisor.send_signal(signal.SIGTERM)

    assert "STOPPING" in manager.next_change()
    (app / "gate").touch()
    assert supervisor.wait(20) == 0
    assert manager.has_heard_nothing()


def test_tasks_and_their_processes_do_not_see_the_notify_socket_and_the_watchdog(start, put, app, manager):
    start(f"{QUEUE}=1", NOTIFY_SOCKET=manager.variable, WATCHDOG_USEC="30000000", WATCHDOG_PID="1")
    put("environment", "seen")

    wait_until((app / "seen").exists, "the task has run")

    names = (app / "seen").read_text()
    assert "BACKEND_QUEUES" in names
    assert "NOTIFY_SOCKET" not in names
    assert "WATCHDOG" not in names


# -- containers: the files -----------------------------------------------------------------------------------


DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "beanstalkd.Dockerfile"]


def command(dockerfile, instruction):
    """Return the argument list of the last such instruction; a shell form is not JSON and raises."""
    rest = [rest for name, rest in instructions(dockerfile) if name == instruction][-1]
    return json.loads(rest[rest.index("[") :]) if instruction == "HEALTHCHECK" else json.loads(rest)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_image_runs_its_process_without_a_shell_and_without_root(dockerfile):
    entrypoint = command(dockerfile, "ENTRYPOINT")
    user = [rest for name, rest in instructions(dockerfile) if name == "USER"][-1]

    assert entrypoint[0] in {"flask-backend", "beanstalkd"}
    assert isinstance(command(dockerfile, "CMD"), list)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_base_image_is_a_build_argument():
    head = instructions(DOCKER / "Dockerfile")

    assert head[0] == ("ARG", "PYTHON_IMAGE=python:3.13-slim")
    assert {rest.split()[0] for name, rest in head if name == "FROM"} == {"${PYTHON_IMAGE}"}


def test_everything_that_the_image_copies_exists_and_is_not_ignored():
    root = DEPLOY.parent
    allowed = [line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    arguments = dict(rest.split("=", 1) for name, rest in instructions(DOCKER / "Dockerfile") if name == "ARG")
    copies = [rest.split()[:-1] for name, rest in instructions(DOCKER / "Dockerfile") if name == "COPY"]
    sources = [source for copy in copies for source in copy if not copy[0].startswith("--from")]

    assert len(sources) == 5
    for source in sources:
        path = source.replace("${APP}", arguments["APP"])
        assert (root / path).exists()
        assert any(path == name or path.startswith(f"{name}/") for name in allowed)


def test_compose_file_starts_web_and_workers_once_the_broker_is_healthy():
    text = (DOCKER / "compose.yaml").read_text()
    names = re.findall(r"(?m)^  (\w+):$", text[text.index("\nservices:") : text.index("\nvolumes:")])

    assert names == ["beanstalkd", "web", "worker"]
    assert re.search(r"depends_on:\s+beanstalkd:\s+condition: service_healthy", text)
    assert "FLASK_APP: app\n" in text
    for name in re.findall(r"dockerfile: (\S+)", text):
        assert (DEPLOY.parent / name).exists() or (DOCKER / name).exists()


# -- containers: as process 1 --------------------------------------------------------------------------------


@pytest.fixture
def container():
    """The command prefix that makes a command process 1 of a new PID namespace with its own /proc."""
    words = [tool("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"]
    trial = subprocess.run([*words, "true"], capture_output=True, text=True)
    if trial.returncode != 0:
        pytest.skip(f"no new PID namespace (are you root?): {trial.stderr.strip()}")
    return words


def process_1(unshare):
    """Return the pid of process 1 outside the namespace."""
    return wait_until(lambda: children_of(unshare.pid), "process 1 has started")[0]


def is_serving(supervisor):
    return any(title(pid).endswith("[idle]") for pid in children_of(supervisor))


def health(supervisor, *arguments):
    """Run the image's health check in the namespace; return its complaints."""
    check = [COMMAND, *(arguments or command(DOCKER / "Dockerfile", "HEALTHCHECK")[1:])]
    inside = [tool("nsenter"), "--target", str(supervisor), "--pid", "--mount", "--root"]
    result = subprocess.run([*inside, *check], capture_output=True, text=True)
    assert (result.returncode, bool(result.stderr)) in {(0, False), (1, True)}
    return result.stderr


def test_process_1_reaps_orphans(start, put, app, container):
    supervisor = process_1(start(f"{QUEUE}=1", before=container))
    wait_until(lambda: is_serving(supervisor), "the worker is ready")
    (worker,) = children_of(supervisor)

    put("leave_orphan", "release")
    wait_until((app / "left").exists, "the orphan runs")
    (orphan,) = wait_until(lambda: set(children_of(supervisor)) - {worker}, "process 1 has adopted the orphan")
    (app / "release").touch()
    wait_until(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan has ended and was reaped")
    assert children_of(supervisor) == [worker]


def test_process_1_drains_on_the_stop_signal_from_outside(start, put, app, broker, manager, container):
    unshare = start(f"{QUEUE}=1", before=container, NOTIFY_SOCKET=manager.variable)
    job = put("wait", "go")
    wait_until((app / "started").exists, "the task runs")

    os.kill(process_1(unshare), signal.Signals[dict(instructions(DOCKER / "Dockerfile"))["STOPSIGNAL"]])
    wait_for(manager, "STOPPING")
    assert not (app / "finished").exists()
    (app / "go").touch()

    assert unshare.wait(20) == 0
    assert (app / "finished").exists()
    with broker.client() as client, pytest.raises(greenstalk.NotFoundError):
        client.stats_job(job)


def test_term_while_process_1_imports_the_app_ends_it(start, app, container):
    (app / "slow-import").touch()
    unshare = start(f"{QUEUE}=1", before=container)
    wait_until((app / "importing").exists, "the import has begun")

    os.kill(process_1(unshare), signal.SIGTERM)

    assert unshare.wait(20) == 0


def test_healthcheck_detects_whether_process_1_has_workers(start, app, container):
    unshare = start(f"{GATED}=1", before=container)
    supervisor = process_1(unshare)
    wait_until(lambda: children_of(supervisor), "the worker is in its hook")
    wait_until(lambda: health(supervisor) == "", "the app is imported")
    expected = f"supervisor 1 is not ready: no worker of {GATED} is ready\n"
    assert health(supervisor, "health", "--ready") == expected

    (app / "gate").touch()
    wait_until(lambda: is_serving(supervisor), "the worker is ready")
    assert health(supervisor, "health") == ""

    # A supervisor that does not replace its dead workers.
    os.kill(supervisor, signal.SIGSTOP)
    for worker in children_of(supervisor):
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_serving(supervisor), "the worker is dead")
    assert health(supervisor).startswith("supervisor 1 has been frozen for ")

    os.kill(supervisor, signal.SIGCONT)
    wait_until(lambda: is_serving(supervisor), "the worker is replaced")
    wait_until(lambda: health(supervisor, "health") == "", "it is alive and ready again")


def test_beanstalkd_as_process_1_is_healthy_until_the_stop_signal_ends_it(processes, container):
    port = free_port()
    unshare = processes([*container, tool("beanstalkd"), "-l", "127.0.0.1", "-p", port])
    image = DOCKER / "beanstalkd.Dockerfile"
    check = [word.replace("11300", str(port)) for word in command(image, "HEALTHCHECK")]
    assert str(port) in check[-1]
    wait_until(lambda: subprocess.run(check, capture_output=True).returncode == 0, "beanstalkd answers")

    os.kill(process_1(unshare), signal.Signals[dict(instructions(image))["STOPSIGNAL"]])

    unshare.wait(5)
    assert subprocess.run(check, capture_output=True).returncode != 0
