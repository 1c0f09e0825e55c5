"""The supervisor's log lines are worded in one module."""

from __future__ import annotations

import ast
from pathlib import Path

from flask_backend.supervisor import wording

ROOM = Path(wording.__file__).parent


def test_no_other_module_words_a_log_line():
    calls = [
        (path.name, ast.unparse(node))
        for path in ROOM.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "logger"
    ]
    assert len(calls) > 20
    assert [call for call in calls if "(wording." not in call[1]] == []


def test_every_line_is_used():
    lines = {name for name in vars(wording) if name.isupper()}
    used = {name for path in ROOM.glob("*.py") for name in lines if f"wording.{name}" in path.read_text()}
    assert used == lines
