"""The documentation agrees with the code; `./run docs` checks its cross-references."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import flask_backend
import flask_backend.testing
from flask_backend import signals
from flask_backend.config import KEYS, Settings
from flask_backend.system.exits import ExitCode

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_to_files(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`]*`", "", text)
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []


def test_the_readme_is_a_door():
    assert len(README.splitlines()) <= 150


def test_every_page_is_in_the_site_and_in_the_readme():
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")} - {"index"}
    index = (DOCS / "index.md").read_text()
    listed = set(re.findall(r"^[\w/-]+$", "".join(re.findall(r"```{toctree}(.*?)```", index, re.DOTALL)), re.MULTILINE))
    assert pages == listed - {"reference/commands"}  # which is no Markdown
    assert {page for page in pages if not page.startswith("reference/")} <= set(
        re.findall(r"docs/([\w/-]+)\.md", README)
    )


def test_the_quickstart_has_the_app_of_the_readme():
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert f"```python\n# hello.py\n{code}```" in (DOCS / "start" / "quickstart.md").read_text()


def test_the_table_of_exit_codes_has_every_code():
    rows = re.findall(r"^\| (\d) \|", (DOCS / "reference" / "exit-codes.md").read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == list(ExitCode)


def test_every_setting_is_documented_in_the_order_of_the_keys():
    assert tuple(re.findall(r"^``(\w+)`` \(``[^`]+``\)$", inspect.getdoc(Settings) or "", re.MULTILINE)) == KEYS


@pytest.mark.parametrize(("page", "module"), [("api", flask_backend), ("testing", flask_backend.testing)])
def test_every_public_name_is_in_the_reference(page, module):
    text = (DOCS / "reference" / f"{page}.md").read_text()
    named = set(re.findall(r"^\.\. (?:auto)?(?:class|exception|function|data):: (\w+)", text, re.MULTILINE))
    assert set(module.__all__) <= named


def test_every_signal_is_in_the_reference():
    text = (DOCS / "reference" / "events.md").read_text()
    named = re.findall(r"^\.\. autodata:: (\w+)", text, re.MULTILINE)
    assert named == [name for name, each in vars(signals).items() if isinstance(each, signals.NamedSignal)]


def test_the_lines_in_troubleshooting_are_logged():
    _, _, section = (DOCS / "oncall" / "troubleshooting.md").read_text().partition("## Lines in the log\n")
    lines = re.findall(r"^### `(.*)`$", section, re.MULTILINE)
    code = "\n".join(path.read_text() for path in (ROOT / "flask_backend").rglob("*.py"))
    assert len(lines) > 5
    assert [line for line in lines if line not in code] == []


@pytest.mark.parametrize("name", ["screen.svg", "top.svg"])
def test_the_pictures_are_well_formed(name):
    assert ET.parse(DOCS / name).getroot().tag.endswith("svg")  # noqa: S314  # our own


def test_the_screen_of_top_in_the_docs_is_that_of_the_picture():
    picture = ET.parse(DOCS / "top.svg")  # noqa: S314  # our own
    texts = ["".join(text.itertext()).rstrip() for text in picture.iter() if text.tag.endswith("}text")]
    page = (DOCS / "oncall" / "commands.md").read_text()
    block = next(each for each in page.split("```") if "[2 workers" in each)
    assert [line for line in block.splitlines() if line] == texts
