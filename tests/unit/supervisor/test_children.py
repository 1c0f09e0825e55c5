from __future__ import annotations

from flask_backend.supervisor.children import Child, Children
from flask_backend.supervisor.plan import Slot
from flask_backend.supervisor.scoreboard import Scoreboard
from flask_backend.supervisor.states import ChildState


def test_ready_children_with_the_newest_code_are_counted():
    scoreboard, children = Scoreboard({"a": [], "b": []}, 10), Children()
    told = [
        ("a", ChildState.READY, False),
        ("a", ChildState.READY, False),
        ("a", ChildState.STARTING, False),
        ("a", ChildState.READY, True),
        ("b", ChildState.DRAINING, False),
    ]
    for pid, (pool, state, is_old) in enumerate(told, 1):
        children.add(Child(Slot(pool, pid), pid, scoreboard.take(pool), 0.0, state, is_old=is_old))
    counts = children.count_ready()
    assert [counts["a"], counts["b"]] == [2, 0]
