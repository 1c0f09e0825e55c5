"""docs/architecture.md describes the code."""

from __future__ import annotations

import re
from pathlib import Path

from test_imports import ARROWS, PACKAGE, VALUES

from flask_backend.supervisor.states import CHILD_TRANSITIONS, SUPERVISOR_TRANSITIONS

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()


def diagram(transitions) -> str:
    lines = (
        f"    {state.name} --> {following.name}: {event.name}\n" for (state, event), following in transitions.items()
    )
    return f"```mermaid\nstateDiagram-v2\n{''.join(lines)}```\n"


def test_the_diagrams_are_drawn_from_the_tables_of_states():
    for transitions in (CHILD_TRANSITIONS, SUPERVISOR_TRANSITIONS):
        assert diagram(transitions) in PAGE


def test_the_arrows_match_the_rules_for_imports():
    _, _, section = PAGE.partition("## Arrows\n")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", section.partition("\n## ")[0], re.MULTILINE)
    assert {room: set(re.findall(r"`(\w+)`", cells)) for room, cells in rows} == {
        room: arrows for room, arrows in ARROWS.items() if room != "values"
    }


def test_the_tree_has_every_room():
    listed = set(re.findall(r"^  (\w+)(?:\.py|/) ", PAGE.partition("```\n\n")[0], re.MULTILINE))
    found = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert listed | VALUES == found
    named = PAGE.partition("Plain values, which every room may use: ")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", named)) == VALUES


def test_the_files_it_names_exist():
    names = re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", PAGE)
    top = PACKAGE.parent
    assert len(names) > 20
    assert [name for name in names if not ((PACKAGE / name).exists() or (top / name).exists())] == []


def test_it_is_short():
    assert len(PAGE.splitlines()) <= 220
