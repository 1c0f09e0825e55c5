from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
EXAMPLE = "tests/typing/scheduling.py"


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "checker", [("mypy", "--strict", EXAMPLE), ("basedpyright", "--level", "error", EXAMPLE)], ids=lambda c: c[0]
)
def test_a_task_has_the_types_of_its_function_and_wrong_calls_are_refused(checker):
    result = subprocess.run([sys.executable, "-m", *checker], cwd=TOP, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_public_names_match_those_of_the_package():
    import flask_backend

    for name in flask_backend.__all__:
        home = flask_backend._HOMES.get(name, "errors")
        assert name in vars(importlib.import_module(f"flask_backend.{home}"))
        assert getattr(flask_backend, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        flask_backend.Nonsense  # noqa: B018
