"""How a process was started, determined after it has changed its folder and its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flask_backend.system.launch import Launch

ROOT = Path(__file__).parents[2]

TELL = """
import json, os, sys
from flask_backend.system.launch import executed_file, launched
launch = launched()
os.chdir("/")
os.environ["ADDED"] = os.environ["KEPT"] = "changed"
print(json.dumps([launch.folder, launch.command(executed_file()), dict(launch.environment)]))
"""


@pytest.fixture
def release(tmp_path):
    """A link to a folder that contains a script."""
    folder = tmp_path / "releases" / "1"
    folder.mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/1")
    (folder / "python").symlink_to(sys.executable)
    (folder / "module.py").write_text(TELL)
    for name, first_lines in (
        ("script", f"#!{sys.executable}"),
        ("safe", f"#!{sys.executable} -P"),
        ("env", "#!/usr/bin/env python3"),
        ("trampoline", f"#!/bin/sh\n'''exec' '{sys.executable}' \"$0\" \"$@\"\n' '''"),
    ):
        (folder / name).write_text(f"{first_lines}\n{TELL}")
        (folder / name).chmod(0o755)
    return tmp_path / "current"


def tell(line: str, **env: str) -> tuple[str, list[str], dict[str, str]]:
    environment = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **env}  # noqa: PTH120
    result = subprocess.run(["/bin/sh", "-c", line], env=environment, capture_output=True, text=True, check=True)
    folder, command, kept = json.loads(result.stdout)
    return folder, command, kept


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("./script a b", ["{folder}/script", "a", "b"]),
        ("{folder}/script a -m", ["{folder}/script", "a", "-m"]),
        ("../1/script", ["{folder}/../1/script"]),  # as the system resolves it: from the folder behind the link
        ("PATH=$PWD:$PATH script a", ["{folder}/script", "a"]),
        ("PATH=.:$PATH script a", ["{folder}/script", "a"]),
        ("./safe ./safe", ["{folder}/safe", "./safe"]),
        ("./trampoline a", ["{folder}/trampoline", "a"]),
        ("./python script a", ["{folder}/python", "script", "a"]),
        ("./python -X dev -m module a", ["{folder}/python", "-X", "dev", "-m", "module", "a"]),
        ("PATH=$PWD:$PATH python script", ["{folder}/python", "script"]),
        ("exec ./script a", ["{folder}/script", "a"]),
    ],
)
def test_the_command_is_the_typed_one_without_its_links_resolved(release, line, command):
    folder, told, _ = tell(f"cd {release} && {line.format(folder=release)}")
    assert folder == str(release)
    assert told == [part.format(folder=release) for part in command]


def test_a_script_started_through_env_gets_the_interpreter_that_env_found(release):
    _, (interpreter, *arguments), _ = tell(f"cd {release} && ./env a")
    assert (os.path.basename(interpreter), arguments) == ("python3", ["./env", "a"])  # noqa: PTH119


@pytest.mark.parametrize("stale", ["/", "/nonexistent", "relative", ""])
def test_a_wrong_name_of_the_folder_is_ignored(release, stale):
    folder, command, _ = tell(f"cd {release} && PWD='{stale}' exec ./script")
    assert folder == str(release.resolve())
    assert command == [f"{release.resolve()}/script"]


def test_a_deleted_folder_is_none(release, tmp_path):
    (tmp_path / "gone").mkdir()
    folder, command, _ = tell(f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {release}/script")
    assert folder is None
    assert command == [f"{release}/script"]


def test_the_environment_is_that_of_the_start_except_for_variables_of_one_process(release):
    _, _, kept = tell(
        f"{release}/script",
        KEPT="first",
        NOTIFY_SOCKET="/run/notify",
        WATCHDOG_USEC="1",
        WATCHDOG_PID="1",
        FLASK_BACKEND_HANDOVER="7",
        FLASK_BACKEND_CHECK="2",
        BACKEND_WORKERS="4",
        EQUAL="a=b\nc",
    )
    assert (kept["KEPT"], kept["BACKEND_WORKERS"], kept["EQUAL"]) == ("first", "4", "a=b\nc")
    assert not {"ADDED", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(kept)
    assert not [name for name in kept if name.startswith("FLASK_BACKEND_")]


def test_bytes_that_are_not_text_stay_unchanged(release):
    script = f"PATH='{os.environ['PATH']}' ODD=$(printf '\\377') {release}/script"
    _, _, kept = tell(script)
    assert os.fsencode(kept["ODD"]) == b"\xff"


def test_where_the_system_does_not_show_the_executable_the_interpreter_is_ours():
    launch = Launch(["python", "-m", "flask_backend", "supervise"], {}, "/srv/current")
    assert launch.command(None) == [sys.executable, "-m", "flask_backend", "supervise"]
    assert launch.command("/lib64/ld-linux-x86-64.so.2") == [sys.executable, "-m", "flask_backend", "supervise"]
