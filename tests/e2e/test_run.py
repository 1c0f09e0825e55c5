"""`./run` and the demo. Installation is left out: this suite runs in the environment that `./run` has installed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import EXAMPLES, ROOT

SH = shutil.which("sh")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


class Machine:
    """A checkout that contains only `run`, on a machine that has only the programs that a test provides."""

    def __init__(self, tmp_path: Path) -> None:
        self._bin = tmp_path / "bin"
        self._bin.mkdir()
        self.project = tmp_path / "project"
        self.project.mkdir()
        shutil.copy(ROOT / "run", self.project)
        (self.project / "pyproject.toml").write_text("# as it was\n")
        for tool in ("cat", "cksum", "dirname", "env", "mktemp", "rm"):
            (self._bin / tool).symlink_to(shutil.which(tool))
        self.has("id", "echo 1000")  # not root

    def has(self, name: str, script: str = "exit 0") -> None:
        write_script(self._bin / name, script)

    def rename(self, old: str, new: str) -> None:
        (self._bin / old).rename(self._bin / new)

    def has_python(self) -> None:
        """Provide a Python that is new enough and makes venvs, and whose pip records what it installs."""
        for tool in ("cp", "grep", "mkdir", "pwd"):
            (self._bin / tool).symlink_to(shutil.which(tool))
        self.has("venv-python", 'case "$*" in *install*) echo "$@" >>pip.log ;; esac')
        self.has("venv-ruff", 'echo "ruff was here"')
        make_venv = (
            f"rm -rf .venv; mkdir -p .venv/bin; echo $(pwd -P)/.venv >.venv/bin/activate; "
            f"cp {self._bin}/venv-python .venv/bin/python; cp {self._bin}/venv-ruff .venv/bin/ruff"
        )
        self.has("python3", f'case "$*" in "-m venv"*) {make_venv} ;; esac')

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SH, self.project / "run", *args],
            env={"PATH": str(self._bin), "TMPDIR": str(self.project)} | env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip

    def lines(self, name: str) -> list[str]:
        file = self.project / name
        return file.read_text().splitlines() if file.exists() else []


def write_script(path: Path, script: str) -> None:
    path.write_text(f"#!{SH}\n{script}\n")
    path.chmod(0o755)


# -- ./run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [(), ("dmeo",)])
def test_run_without_a_command_it_knows_shows_its_usage_and_exits_2(machine, args):
    result = machine.run(*args)
    assert result.returncode == 2
    assert result.stdout == ""
    for command in ("demo", "test", "soak", "lint", "types"):
        assert re.search(rf"^  {command} ", result.stderr, re.MULTILINE)
    assert not (machine.project / ".venv").exists()


def test_run_help_is_not_a_mistake(machine):
    result = machine.run("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: ./run COMMAND" in result.stdout


def test_run_names_the_python_it_found_too_old(machine):
    machine.has("python3", '[ "$1" != --version ] || { echo Python 3.9.2; exit; }; exit 1')
    result = machine.run("lint")
    assert result.returncode == 1
    assert "needs Python 3.11 or later, and python3 here is Python 3.9.2" in result.stderr
    assert not (machine.project / ".venv").exists()


def test_run_takes_the_first_python_that_is_new_enough(machine):
    machine.has_python()
    machine.rename("python3", "real")
    machine.has("python3", "exit 1")
    machine.has("python3.13", "exit 1")
    machine.has("python3.12", 'echo used >>used.log; exec real "$@"')
    assert machine.run("lint").returncode == 0
    assert machine.lines("used.log")


def test_run_refuses_a_chosen_python_that_is_too_old(machine):
    machine.has("python3")
    machine.has("old", "exit 1")
    result = machine.run("lint", PYTHON="old")
    assert result.returncode == 1
    assert "PYTHON=old is not Python 3.11 or later" in result.stderr


def test_run_names_the_package_that_holds_venv(machine):
    machine.has("python3", 'case "$*" in *ensurepip*) exit 1 ;; *print*) echo python3.11-venv ;; esac')
    result = machine.run("lint")
    assert result.returncode == 1
    assert "sudo apt-get install python3.11-venv" in result.stderr


@pytest.mark.parametrize(("manager", "line"), [("apt-get", "sudo apt-get install"), ("brew", "brew install")])
def test_run_names_the_line_that_installs_beanstalkd(machine, manager, line):
    machine.has_python()
    machine.has(manager, "echo called >>called.log")
    result = machine.run("beanstalkd")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].strip() == f"{line} beanstalkd"
    assert not (machine.project / "called.log").exists()


def test_run_as_root_on_debian_installs_beanstalkd_quietly(machine):
    machine.has_python()
    machine.has("id", "echo 0")
    machine.has("apt-get", 'echo "$@" >>apt.log; echo chatter')
    result = machine.run("beanstalkd")
    assert result.returncode == 0
    assert machine.lines("apt.log") == ["-q update", "-q install -y --no-install-recommends beanstalkd"]
    assert "chatter" not in result.stdout + result.stderr


def test_run_shows_the_output_of_a_failed_installation(machine):
    machine.has_python()
    machine.has("venv-python", 'case "$*" in *install*) echo no net; exit 1 ;; esac')
    result = machine.run("lint")
    assert result.returncode == 1
    assert "no net" in result.stderr
    assert "ruff was here" not in result.stdout


def test_run_installs_again_only_when_the_requirements_change(machine):
    machine.has_python()
    assert machine.run("lint").stdout.count("ruff was here") == 2
    machine.run("lint")
    assert len(machine.lines("pip.log")) == 1
    (machine.project / "pyproject.toml").write_text("# as it is now\n")
    machine.run("lint")
    assert len(machine.lines("pip.log")) == 2


def test_run_recreates_its_venv_when_the_checkout_was_moved(machine):
    machine.has_python()
    machine.run("lint")
    machine.project = machine.project.rename(machine.project.with_name("moved project"))
    result = machine.run("lint")
    assert result.returncode == 0
    assert len(machine.lines("pip.log")) == 2
    assert machine.lines(".venv/bin/activate") == [f"{machine.project}/.venv"]


def test_run_lint_fails_if_one_of_its_checks_does_but_runs_all(machine):
    machine.has_python()
    machine.has("venv-ruff", 'echo "ruff was here"; [ "$1" = check ]')
    result = machine.run("lint")
    assert result.returncode == 1
    assert result.stdout.count("ruff was here") == 2


REAL = "The tests, on beanstalkd 1.12"
OWN = "The tests that depend on the broker, on the embedded one"
SEVERAL = ["-m", "pytest", "--numprocesses", "3", "--dist", "worksteal"]
CHOSEN = ["-m", "not soak", "tests/a b.py", "--maxfail=1"]
AGAIN = [*SEVERAL, "--only-with-broker"]


@pytest.mark.parametrize(
    ("args", "given"),
    [
        (["test"], [REAL, *SEVERAL, "-m", "not soak", OWN, *AGAIN, "-m", "not soak"]),
        (
            ["test", "tests/a b.py", "--maxfail=1"],
            [REAL, *SEVERAL, *CHOSEN, OWN, *AGAIN, *CHOSEN],
        ),
        (
            ["test", "-m", "soak or not soak"],
            [REAL, *SEVERAL, "-m", "soak or not soak", OWN, *AGAIN, "-m", "soak or not soak"],
        ),
        (["soak", "-x"], ["-m", "pytest", "-m", "soak", "-raP", "-x"]),
    ],
)
def test_run_test_leaves_out_the_slow_tests_unless_requested(machine, args, given):
    machine.has_python()
    machine.has("beanstalkd", "echo beanstalkd 1.12")
    machine.has("venv-python", 'case "$*" in *pip*) ;; *) printf "%s\\n" "$@" ;; esac')
    result = machine.run(*args)
    assert result.returncode == 0
    assert result.stdout.splitlines() == given


@pytest.mark.parametrize(
    ("real", "embedded", "code"), [("0", "0", 0), ("1", "0", 1), ("0", "1", 1), ("0", "5", 0), ("1", "5", 1)]
)
def test_run_test_fails_if_it_fails_on_one_of_the_brokers(machine, real, embedded, code):
    machine.has_python()
    machine.has("beanstalkd", "echo beanstalkd 1.12")
    machine.has("venv-python", f'case "$TEST_BROKER" in beanstalkd) exit {real} ;; embedded) exit {embedded} ;; esac')
    assert machine.run("test").returncode == code


@pytest.mark.parametrize("only", ["beanstalkd", "embedded"])
def test_run_test_runs_on_the_broker_that_is_chosen_and_only_once(machine, only):
    machine.has_python()
    machine.has("beanstalkd", "echo beanstalkd 1.12")
    machine.has("venv-python", 'case "$*" in *pip*) ;; *) echo "$TEST_BROKER, ${ONLY_BROKER-unset}" ;; esac')
    result = machine.run("test", ONLY_BROKER=only)
    assert (result.returncode, result.stdout) == (0, f"{only}, unset\n")


def test_run_test_without_beanstalkd_names_its_broker_unless_beanstalkd_is_required(machine):
    machine.has_python()
    result = machine.run("test")
    assert (result.returncode, result.stdout.splitlines()[0]) == (
        0,
        "The tests, on the embedded broker: Beanstalkd is not installed",
    )
    result = machine.run("test", REQUIRE_BEANSTALKD="1")
    assert (result.returncode, "Beanstalkd is missing, and REQUIRE_BEANSTALKD is set." in result.stderr) == (1, True)


def test_run_newest_without_its_requirements_says_so_and_does_not_fail(machine):
    result = machine.run("newest")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "A tree of Debian needs: root debootstrap unshare chroot tar\n"
        "Not run on the newest Python and Beanstalkd, see above\n"
    )


def test_run_newest_where_no_tree_can_be_made_says_so_and_does_not_fail(machine, tmp_path):
    machine.has("id", "echo 0")
    for tool in ("unshare", "chroot", "tar"):
        machine.has(tool)
    for tool in ("sed", "head", "tail", "touch"):
        (machine._bin / tool).symlink_to(shutil.which(tool))
    machine.has("debootstrap", "echo no such suite; exit 1")
    result = machine.run("newest", NEWEST_TREE=str(tmp_path / "tree"))
    assert result.returncode == 0
    assert "no such suite" in result.stderr
    assert result.stdout == (
        "debootstrap cannot make a tree of Debian's sid here\nNot run on the newest Python and Beanstalkd, see above\n"
    )


def test_run_versions_names_the_missing_ones(machine):
    machine.has_python()
    machine.has("venv-python", 'case "$*" in *version_info*) echo 3.12 ;; esac')
    lines = machine.run("versions").stdout.splitlines()
    assert lines == [f"Python {version}: not installed" for version in ("3.11", "3.13", "3.14")]


# -- the demo ------------------------------------------------------------------------------------------------


@pytest.fixture
def demo():
    """The demo as a module."""
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    module = importlib.util.module_from_spec(spec)
    # A module with dataclasses looks itself up during its execution.
    sys.modules["demo"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["demo"]


def run_demo(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / "demo.py"],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"} | env,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.mark.timeout(120)
def test_demo_shows_what_happened_and_leaves_only_its_folder(tmp_path):
    files_before = sorted(EXAMPLES.rglob("*"))
    started = time.monotonic()
    # Settings of the caller's shell for other apps must not reach it.
    result = run_demo(tmp_path, FLASK_DEBUG="1", FLASK_APP="nothing", BACKEND_CONNECTION_URI="btq://127.0.0.1:1")
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert time.monotonic() - started < 20

    killed = re.search(r"worker (\d+) was killed by its job 2", result.stdout)
    replaced = re.search(r"the supervisor replaced worker (\d+) by (\d+)", result.stdout)
    assert killed[1] == replaced[1] != replaced[2]
    assert re.search(r"fails_first failed \(job 1, attempt 1 of 10\): next try in [12] s", result.stdout)
    assert "FALSE" not in result.stdout
    assert "All of it was true" in result.stdout

    (folder,) = tmp_path.iterdir()
    assert str(folder) in result.stdout
    assert len(list((folder / "thumbnails").iterdir())) == 18
    assert sorted(EXAMPLES.rglob("*")) == files_before
    assert not [process for process in psutil.process_iter() if str(folder) in str(environment(process))]


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_demo_that_breaks_off_says_where_and_exits_1(tmp_path):
    (tmp_path / "beanstalkd").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "beanstalkd").chmod(0o755)
    result = run_demo(tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert result.returncode == 1
    assert "The demo broke off" in result.stderr
    assert "the broker finds no free port" in result.stderr


@pytest.mark.timeout(120)
def test_demo_without_beanstalkd_uses_the_embedded_broker(tmp_path):
    result = run_demo(tmp_path, PATH="/nonexistent")
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert "Own broker   127.0.0.1:" in result.stdout
    assert "All of it was true" in result.stdout


def facts_as_they_should_be(demo, tmp_path, log: str):
    def said(pattern: str) -> list[re.Match[str]]:
        return list(re.finditer(pattern, log))

    return demo.Facts(
        job_ids={"fails_first": 1, "kills_its_worker_first": 2},
        first_workers={1, 2, 3, 4},
        last_workers={1, 2, 3, 5},
        jobs_left=0,
        exit_code=0,
        processes_left=[],
        files=[tmp_path] * 3 * len(demo.PHOTOS),
        made=said(r"made (by) (\S+) in (\d+)"),
        failed=said(r"failed (\S+), (\S+)"),
        retried=said(r"retried (\d+)"),
        killed=said(r"killed (\d+) (\d+)"),
        redone=said(r"redone (\d+)"),
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"jobs_left": 1}, "the queue is empty"),
        ({"exit_code": 4}, "the supervisor stopped with exit code 0"),
        ({"processes_left": ["one"]}, "no process is left"),
        ({"last_workers": {1, 2, 3, 4}}, "the killed worker was replaced"),
        ({"last_workers": {1, 2, 5, 6}}, "the killed worker was replaced"),
        ({"killed": []}, "killed one worker"),
        ({"retried": []}, "fails_first failed once, was retried"),
        ({"made": []}, "every photograph's thumbnails were made, once"),
        ({"files": []}, "three files were written for each"),
    ],
)
def test_demo_names_the_unmet_expectation_and_exits_1(demo, tmp_path, monkeypatch, capsys, change, named):
    monkeypatch.setattr(demo.tempfile, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    log = " ".join(f"made by {photo} in 9" for photo in demo.PHOTOS) + " failed 1, 2 retried 3 killed 4 2 redone 1"
    facts = facts_as_they_should_be(demo, tmp_path, log)
    monkeypatch.setattr(demo, "run", lambda _folder: facts)
    assert demo.main() == 0
    for name, value in change.items():
        setattr(facts, name, value)
    assert demo.main() == 1
    assert named in capsys.readouterr().err
