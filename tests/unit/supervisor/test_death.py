from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from flask_backend.deaths import EXIT_REASONS
from flask_backend.supervisor.death import reason_of

ROOT = Path(__file__).parents[3]


def test_the_reasons_of_exits_are_those_that_metrics_start_at_zero_and_the_reference_explains():
    code = ast.parse(inspect.getsource(reason_of))
    returned = {
        node.value
        for statement in ast.walk(code)
        if isinstance(statement, ast.Return)
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert returned == set(EXIT_REASONS)
    text = (ROOT / "docs" / "reference" / "status.md").read_text()
    paragraph = text[text.index("The reasons of exits:") :].partition("\n\n")[0]
    assert re.findall(r"`(\w+)`", paragraph) == list(EXIT_REASONS)
