"""The installed command, as a user types it."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from helpers import Program
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

from flask_backend import cli
from flask_backend.cli import COMMANDS, main

BIN = Path(sys.executable).parent
WORKLOAD = str(Path(__file__).parents[1] / "support" / "workload.py")


def run(*args: str, cwd: Path | None = None, program: str = "flask-backend", **env: str):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BACKEND_", "FLASK_"))}
    return subprocess.run(
        [BIN / program, *args], capture_output=True, text=True, cwd=cwd, env=environment | env, timeout=30
    )


@pytest.fixture
def app_with(tmp_path):
    """Write an app.py, which Flask finds by itself."""

    def write(code: str) -> Path:
        (tmp_path / "app.py").write_text(
            f"from flask import Flask\nfrom flask_backend import Backend\napp = Flask(__name__)\n{code}\n"
        )
        return tmp_path

    return write


MINIMAL = """
backend = Backend(app)
@backend.task("com.example/default")
def hello(): ...
"""


class TestCheck:
    def test_it_lists_the_registered_tasks(self):
        result = run("--app", WORKLOAD, "check", BACKEND_CONNECTION_URI="btq://[::1]:5")
        assert result.returncode == 0
        assert result.stdout.startswith(f"app:    support.workload\nbroker: btq://[::1]:5\nqueue:  {QUEUE}\n  task ")
        assert f"queue:  {INBOX}\n  receiver inbox\n  before first task inbox_hook\n" in result.stdout

    def test_json_is_for_programs(self, app_with):
        result = run("check", "--json", cwd=app_with(MINIMAL))
        assert json.loads(result.stdout) == {
            "app": "app",
            "broker": "btq://127.0.0.1:11300",
            "queues": [
                {
                    "queue": "com.example/default",
                    "tasks": ["hello"],
                    "receiver": None,
                    "before_first_task": [],
                    "periodic": [],
                }
            ],
        }

    def test_an_app_without_tasks_is_reported(self, app_with):
        assert "no tasks and no receivers" in run("check", cwd=app_with("backend = Backend(app)")).stdout

    @pytest.mark.parametrize("how", [["--app", "app"], ["-A", "app:app"], ["--app", "app:create_app('x')"], []])
    def test_the_app_is_found_as_flask_finds_it(self, app_with, how):
        code = f"{MINIMAL}\ndef create_app(name):\n    return app\n"
        assert run(*how, "check", cwd=app_with(code)).returncode == 0

    def test_the_environment_names_the_app_too(self, app_with):
        folder = app_with(MINIMAL)
        (folder / "app.py").rename(folder / "other.py")
        assert run("check", cwd=folder).returncode == 3
        assert run("check", cwd=folder, FLASK_APP="other").returncode == 0


BROKEN = {
    "syntax": ("def (", "SyntaxError", "app.py"),
    "exception": (
        "def helper():\n    raise ZeroDivisionError('mine')\nhelper()",
        "ZeroDivisionError: mine",
        "in helper",
    ),
    "import": ("import nonexistent_module", "No module named 'nonexistent_module'", "app.py"),
    "exit": ("raise SystemExit('no config')", "SystemExit: no config", "app.py"),
    "no backend": ("", "app 'app' has no Backend: use Backend(app), or backend.init_app(app)", ""),
    "setting": (
        "app.config['BACKEND_CONNECTION_URI'] = 'http://x'\nBackend(app)",
        "BACKEND_CONNECTION_URI is 'http://x'; expected btq://HOST or btq://HOST:PORT",
        "app.py",
    ),
    "queue name": ("Backend(app).task('a b')(print)", "'a b' cannot be a queue name", "app.py"),
    "twice": (
        "b = Backend(app)\nb.task('q')(print)\nb.task('q')(print)",
        "queue 'q' already has a task 'print'",
        "app.py",
    ),
}


@pytest.mark.parametrize("command", [["check"], ["supervise", "--queue", "q"], ["worker", "q"]], ids=lambda c: c[0])
@pytest.mark.parametrize(("code", "message", "place"), BROKEN.values(), ids=BROKEN)
def test_an_app_that_cannot_be_loaded_is_exit_3_with_the_traceback_of_the_users_code(
    app_with, command, code, message, place
):
    result = run(*command, cwd=app_with(code))
    assert result.returncode == 3, result.stderr
    assert message in result.stderr
    assert place in result.stderr
    assert "flask_backend/cli/" not in result.stderr
    assert result.stdout == ""


def test_a_missing_app_is_exit_3():
    result = run("--app", "nonexistent", "check")
    assert (result.returncode, "Could not import 'nonexistent'" in result.stderr) == (3, True)


@pytest.mark.parametrize("command", [["supervise", "--queue"], ["worker"]], ids=lambda c: c[0])
def test_an_unregistered_queue_is_exit_3_and_lists_those_that_exist(command):
    result = run("--app", WORKLOAD, *command, "com.example/defualt")
    assert result.returncode == 3
    assert "app 'support.workload' has no queue 'com.example/defualt'" in result.stderr
    assert f"  {QUEUE}\n  {INBOX}\n" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["supervise", "--queue", "q=0"], "'0': a queue has at least one worker"),
        (["supervise", "--queue", "q=x"], "'x' is not a number of workers: expected one such as 4, or a range, 2..8"),
        (["supervise", "--queue", "q=8..2"], "the minimum is above the maximum, expected 2..8"),
        (["supervise", "--queue", f"{QUEUE}=1..1500", "--queue", f"{INBOX}=501"], "2001 workers are too many"),
        (["supervise", "--max-memory", "lots"], "'lots' is not a size: expected a number with K, M, G or T"),
        (["supervise", "--max-memory", "0"], "'0' is not a size"),
        (["supervise", "--workers", "0"], "Invalid value for '--workers'"),
        (["supervise", "--drain-timeout", "-1"], "Invalid value for '--drain-timeout'"),
        (["supervise", "--queue", QUEUE, "--queue", f"{QUEUE}=2"], "a queue is named twice"),
        (["supervise", "--queue", f"{QUEUE}=5000"], "5000 workers are too many: at most 2000"),
        (["supervise", "--log-format", "xml"], "'xml' is not one of 'text', 'json'"),
        (["worker"], "Missing argument 'QUEUE'"),
        (["dance"], "No such command 'dance'"),
    ],
)
def test_wrong_usage_is_exit_2_and_shows_what_is_expected(args, message):
    result = run("--app", WORKLOAD, *args)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr


OPTIONS = [
    "queue",
    "workers",
    "max-memory",
    "max-memory-hard",
    "max-tasks",
    "prefetch",
    "time-limit",
    "kill-grace",
    "boot-timeout",
    "give-up-after",
    "give-up-within",
    "drain-timeout",
    "metrics",
    "log-format",
]


def test_help_shows_the_environment_variable_of_each_option():
    text = run("supervise", "--help").stdout
    options = re.findall(r"^  (?:-\w, )?--([\w-]+)", text, re.MULTILINE)
    variables = re.findall(r"env\s+var:\s+BACKEND_(\w+)", text)
    assert [o for o in options if o != "help"] == OPTIONS
    assert variables == ["QUEUES", *(option.upper().replace("-", "_") for option in OPTIONS[1:])]


@pytest.mark.parametrize("args", [["supervise", "--help"], ["--version"], ["dance"]], ids=" ".join)
def test_help_and_version_and_typing_errors_need_no_flask(args):
    code = (
        "import sys\nfrom flask_backend.cli import main\n"
        f"try:\n    main({args})\nexcept SystemExit:\n    pass\n"
        "assert 'flask' not in sys.modules and 'psutil' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_list_of_commands_imports_none_of_them():
    code = (
        "import sys\nfrom flask_backend.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "modules = [name for name in sys.modules if name.startswith('flask_backend.cli.commands')]\n"
        "assert modules == [], modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert re.findall(r"^  (\w+) ", shown.partition("\nCommands:\n")[2], re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_the_first_paragraph_of_its_help(name):
    command = main.get_command(click.Context(main), name)
    assert " ".join(command.help.partition("\n\n")[0].split()) == COMMANDS[name]


def test_each_command_has_a_module_of_its_name():
    folder = Path(cli.__file__).parent / "commands"
    assert sorted(module.name for module in pkgutil.iter_modules([folder])) == list(COMMANDS)


def test_a_command_imports_no_other_command():
    code = (
        "import sys\nfrom flask_backend.cli import main\n"
        "try:\n    main(['supervise', '--help'])\nexcept SystemExit:\n    pass\n"
        "modules = {name.rpartition('.')[2] for name in sys.modules if name.startswith('flask_backend.cli.')}\n"
        "assert modules == {'commands', 'interrupts', 'parameters', 'supervise'}, modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_version_that_cannot_take_over_from_the_running_one_is_reported_before_a_reload():
    result = run("--app", WORKLOAD, "supervise", FLASK_BACKEND_CHECK="0")
    assert result.returncode == 3
    assert "cannot take over from the one that runs: restart it instead" in result.stderr


def test_options_come_from_the_environment(command, broker):
    running = command(
        "supervise", BACKEND_QUEUES=f"{QUEUE}=1 {INBOX}=2", BACKEND_DRAIN_TIMEOUT="7", BACKEND_MAX_MEMORY="1.5G"
    )
    wait_until(lambda: (broker.waiting(QUEUE), broker.waiting(INBOX)) == (1, 2), "three workers")
    running.send(signal.SIGTERM)
    assert running.wait() == 0


def test_threads_that_the_import_started_are_named_in_a_warning(app_with, broker):
    code = (
        f"{MINIMAL}\nimport logging.handlers, queue, threading, time\n"
        "threading.Thread(target=time.sleep, args=(3600,), daemon=True, name='metrics').start()\n"
        "logging.handlers.QueueListener(queue.SimpleQueue(), logging.StreamHandler()).start()\n"
    )
    process = subprocess.Popen(
        [BIN / "flask-backend", "supervise", "-w", "1"],
        cwd=app_with(code),
        env=os.environ | {"BACKEND_CONNECTION_URI": broker.uri},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: broker.waiting("com.example/default") == 1, "the worker reserves")
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "importing the app has started threads (metrics, " in stderr
    assert "importing the app has started a QueueListener (thread " in stderr
    assert "never reach its handlers (StreamHandler)" in stderr


class TestFlask:
    """The same commands as `flask backend ...`."""

    def test_check(self, app_with):
        result = run("--app", "app", "backend", "check", cwd=app_with(MINIMAL), program="flask")
        assert (result.returncode, "  task hello" in result.stdout) == (0, True)

    def test_supervise_runs_without_an_app_context_around_it(self, app_with, broker):
        code = f"""{MINIMAL}
from flask import has_app_context
@backend.before_first_task("com.example/default")
def hook():
    import flask.globals
    print("depth", len(str(flask.globals._cv_app.get().app)), flush=True)
"""
        process = subprocess.Popen(
            [BIN / "flask", "backend", "supervise", "-w", "1"],
            cwd=app_with(code),
            env=os.environ | {"BACKEND_CONNECTION_URI": broker.uri},
        )
        wait_until(lambda: broker.waiting("com.example/default") == 1, "the worker reserves")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0

    def test_the_group_is_listed(self, app_with):
        result = run("--help", cwd=app_with(MINIMAL), program="flask")
        assert re.search(r"backend +Run the workers", result.stdout)


class TestLogging:
    def test_an_app_that_configured_logging_is_left_alone(self, app_with, broker):
        code = f"import logging; logging.basicConfig(format='MINE %(message)s', level='INFO')\n{MINIMAL}"
        assert "MINE ready: com.example/default" in self._worker_log(app_with(code), broker)

    def test_otherwise_info_is_shown_and_no_line_twice(self, app_with, broker):
        code = (
            f"{MINIMAL}\napp.logger.warning('while importing')\n"
            "@backend.before_first_task('com.example/default')\ndef hook(): app.logger.info('in the hook')\n"
        )
        log = self._worker_log(app_with(code), broker)
        assert log.count("in the hook") == 1
        assert log.count("while importing") == 1

    @staticmethod
    def _worker_log(folder: Path, broker) -> str:
        process = subprocess.Popen(
            [BIN / "flask-backend", "worker", "com.example/default"],
            cwd=folder,
            env=os.environ | {"BACKEND_CONNECTION_URI": broker.uri},
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: broker.waiting("com.example/default") == 1, "the worker reserves")
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 0
        return stderr


INTERRUPTED = """
import os, signal, sys, weakref
from flask_backend import cli

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            found = Finder()
            reference = weakref.ref(found, lambda _: os.kill(os.getpid(), signal.SIGINT))
            del found

sys.meta_path.insert(0, Finder())
cli.main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("module", "args"),
    [
        ("flask_backend.cli.commands.supervise", ["supervise", "--help"]),
        ("flask_backend.cli.commands.queues", ["queues", "--help"]),
        ("flask.cli", ["queues"]),  # to read .env
        ("flask_backend.worker.worker", ["supervise"]),
    ],
)
def test_ctrl_c_is_not_lost_while_the_import_system_calls_back(module, args, tmp_path):
    """As after the import of a module: an exception raised there is only reported."""
    (tmp_path / ".env").touch()
    program = [sys.executable, "-c", INTERRUPTED, module, *args]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "\nAborted!\n")


class TestOriginalCommand:
    """`flask backend QUEUE`, as in the original's versions 1.5 and 1.6."""

    APP = """
import os, signal
backend = Backend(app)
@backend.task("com.example/default")
def hello(): ...
@backend.task("queues")
def listed(): ...
@backend.before_first_task("com.example/default")
def connect():
    app.logger.warning("a worker starts")
    os.kill(os.getpid(), signal.SIGTERM)
"""

    def flask_backend(self, folder: Path, *args: str):
        return run("--app", "app", "backend", *args, cwd=folder, program="flask")

    def test_it_runs_a_worker_of_that_queue(self, app_with):
        result = self.flask_backend(app_with(self.APP), "com.example/default", "--log-format", "json")
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("a worker starts") == 1
        assert '"message": "a worker starts"' in result.stderr

    def test_the_name_of_a_command_comes_first(self, app_with):
        assert "Usage: flask backend queues " in self.flask_backend(app_with(self.APP), "queues", "--help").stdout

    @pytest.mark.parametrize("name", ["another", "--another", "com.example/defaul"])
    def test_another_name_is_a_usage_error(self, app_with, name):
        result = self.flask_backend(app_with(self.APP), name)
        assert (result.returncode, result.stdout) == (2, "")
        assert re.search(rf"No such (command|option):? '?{name}", result.stderr)

    def test_an_app_that_fails_is_reported_with_exit_code_3(self, app_with):
        result = self.flask_backend(app_with("1 / 0"), "com.example/default")
        assert result.returncode == 3
        assert "ZeroDivisionError" in result.stderr

    def test_our_own_command_line_takes_commands_only(self, app_with):
        assert run("--app", "app", "com.example/default", cwd=app_with(self.APP)).returncode == 2


class TestAsFlasksOwnCommand:
    """`flask-backend` reads the environment variables that `flask` reads."""

    @pytest.mark.parametrize("program", [["flask-backend", "check"], ["flask", "backend", "check"]], ids=lambda p: p[0])
    @pytest.mark.parametrize(
        ("skip", "host"), [("1", "127.0.0.1"), ("true", "127.0.0.1"), ("0", "dotenv"), ("", "dotenv")]
    )
    def test_env_files_are_left_alone_if_asked(self, app_with, program, skip, host):
        pytest.importorskip("dotenv")
        folder = app_with(MINIMAL)
        (folder / ".env").write_text("BACKEND_CONNECTION_URI=btq://dotenv:1\n")
        name, *args = program
        result = run("--app", "app", *args, cwd=folder, program=name, FLASK_SKIP_DOTENV=skip)
        assert re.search(f"^broker: btq://{host}:", result.stdout, re.MULTILINE)

    def test_commands_without_an_app_leave_env_files_alone_too(self, tmp_path):
        pytest.importorskip("dotenv")
        (tmp_path / ".flaskenv").write_text("BACKEND_CONNECTION_URI=btq://127.0.0.1:1\n")
        skipped = run("queues", cwd=tmp_path, FLASK_SKIP_DOTENV="1", BACKEND_CONNECTION_URI="btq://127.0.0.1:2")
        assert "btq://127.0.0.1:2" in skipped.stderr
        assert "btq://127.0.0.1:1" in run("queues", cwd=tmp_path).stderr

    def test_an_unguarded_run_of_the_app_starts_no_web_server(self, app_with, broker):
        folder = app_with(f"{MINIMAL}\napp.run(port=0)\n")
        result = run("check", cwd=folder)
        assert (result.returncode, "Ignoring a call to 'app.run()'" in result.stdout) == (0, True)
        assert "task hello" in result.stdout
        assert run("call", "hello", "--yes", cwd=folder, **broker.env).returncode == 0
        worker = Program(
            BIN / "flask-backend", "worker", "com.example/default", log=folder / "log", cwd=folder, env=broker.env
        )
        wait_until(lambda: broker.is_empty("com.example/default"), "the worker does its job")
        assert worker.stop() == 0
        supervisor = Program(
            BIN / "flask-backend", "supervise", "--workers", "1", log=folder / "log", cwd=folder, env=broker.env
        )
        supervisor.wait_for("ready: com.example/default=1")
        assert supervisor.stop() == 0
