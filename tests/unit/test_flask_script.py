"""`from flask_script import ...` with the old package absent, broken, or neither of the two installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(code: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )


USE = """
from flask_backend import Backend, BackendCommand
from flask_script import Manager, Server
from flask_script.commands import Command
import flask_script
assert issubclass(BackendCommand, Command) and flask_script.__name__ == "flask_script_ng", flask_script
"""


def test_an_absent_flask_script_is_found_as_its_successor():
    assert run(USE).stderr == ""


@pytest.mark.parametrize(
    "broken", ["from flask._compat import text_type", "from .commands import Command\nraise ImportError"]
)
def test_a_broken_flask_script_is_replaced_by_its_successor(tmp_path, broken):
    package = tmp_path / "flask_script"
    package.mkdir()
    (package / "__init__.py").write_text(broken)
    (package / "commands.py").write_text("class Command: pass")
    assert run(USE, str(tmp_path)).stderr == ""


def test_a_working_flask_script_is_left_alone(tmp_path):
    (tmp_path / "flask_script.py").write_text("class Command: pass")
    code = "import flask_script, flask_backend; assert flask_backend.BackendCommand.__mro__[1] is flask_script.Command"
    assert run(code, str(tmp_path)).stderr == ""


def test_without_either_the_error_names_the_package_to_install():
    code = "import sys\nsys.modules['flask_script'] = sys.modules['flask_script_ng'] = None\nimport flask_backend\n"
    result = run(code + "from flask_backend import Backend\n" + "from flask_backend import BackendCommand")
    assert "BackendCommand needs Flask-Script: pip install 'flask-backend[flask-script]'" in result.stderr


def test_only_users_of_the_command_get_the_alias():
    assert "No module named 'flask_script'" in run("from flask_backend import Backend\nimport flask_script").stderr
