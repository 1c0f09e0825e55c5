"""What leaves the page: copied text, copied command lines, print."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest
from support.dashboard_app import CARD, MAIL
from support.stories import bury_many

from flask_backend.config import Settings, parse_broker
from flask_backend.names import failures_tube

pytestmark = pytest.mark.any_broker

TRICKY = "$(touch owned); `id` 'x' \u202egnp.exe \x1b[31m\x07\n<b>bold</b>"
BODY = b'{"endpoint": "invoice", "args": [7, "%b"]}' % CARD.encode()
TRACEBACK = f"""Traceback (most recent call last):
  File "/srv/shop/bank.py", line 7, in pay
    charge(card="{CARD}")
ValueError: the bank refuses card {CARD}"""


@pytest.fixture
def bury(site):
    def bury(**told) -> int:
        told = {"exception": "ValueError", "message": f"card {CARD}", "traceback": TRACEBACK, **told}
        [job_id] = bury_many(Settings(parse_broker(site.broker.uri)), MAIL, 1, BODY, **told)
        return job_id

    return bury


def copied(chromium, site) -> str:
    """Press "Copy as text"; return what the clipboard has then."""
    chromium.devtools("Browser.grantPermissions", origin=site.root, permissions=["clipboardReadWrite"])
    chromium.click("button", "Copy as text")
    chromium.wait_for_text("Copied", "#status")
    return chromium.run("return navigator.clipboard.readText()")


def test_copied_text_has_the_story_and_no_control_characters(chromium, site, bury):
    job_id = bury(message=TRICKY, traceback=f"{TRACEBACK}\n{TRICKY}")
    chromium.open(site.url("/job", id=job_id))
    text = copied(chromium, site)
    assert "ValueError: $(touch owned)" in text
    assert f'charge(card="{CARD}")' in text
    assert "<b>bold</b>" in text
    assert not [each for each in "\u202e\x1b\x07" if each in text]
    assert "Delete" not in text  # neither the buttons nor the navigation


def test_copied_text_and_print_without_arguments_for_who_may_not_see_them(chromium, site, bury, tmp_path):
    job_id = bury()
    secrets = (CARD, "refuses", "charge(", "bank.py")
    for role, is_hidden in (("operator", False), ("blind", True)):
        site.log_in(chromium, role)
        chromium.open(site.url("/job", id=job_id))
        texts = [copied(chromium, site), printed(chromium, tmp_path)]
        chromium.devtools("Emulation.setEmulatedMedia", media="print")
        texts.append(chromium.text)
        chromium.devtools("Emulation.setEmulatedMedia", media="")
        for text in filter(None, texts):
            assert f"{'hidden' if is_hidden else CARD}" in text
            assert [each for each in secrets if each in text] == ([] if is_hidden else list(secrets))


def printed(chromium, tmp_path) -> str | None:
    """Return the text of the page as it is printed, or None where no program can read it."""
    chromium.print(tmp_path / "printed.pdf")
    if (program := shutil.which("pdftotext")) is None:
        return None
    command = [program, "-layout", str(tmp_path / "printed.pdf"), "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_command_line_of_a_hostile_name_is_one_word_of_a_shell(chromium, site, bury):
    bury(endpoint="inv$(touch owned)';`id`\u202e\x1b[31m")
    [group] = site.app.test_client().get("/backend/failures.json").json["groups"]
    query = {"queue": MAIL, "task": group["endpoint"], "kind": "ValueError"}
    chromium.open(site.url("/failures/group", **query))
    chromium.follow("a", "Delete all (1)")
    command = chromium.find(".command").text
    words = shlex.split(command)
    assert words[:4] == ["flask-backend", "delete", "--all", "--match"]
    assert words[4].startswith("inv$(touch owned)';`id`")
    assert words[5] == "--broker"
    assert command.isprintable()
    assert site.broker.count(failures_tube(MAIL), "ready") == 1


def test_long_traceback_is_printed_whole_on_two_pages(chromium, site, bury, tmp_path):
    frames = [
        f'  File "/srv/{"lib/python3/dist-packages/" if number % 3 else "shop/"}part{number}.py", line 7, in step\n'
        f"    return self.execute(statement, {'x' * (number * 7 % 120)})"
        for number in range(60)
    ]
    traceback = "\n".join(["Traceback (most recent call last):", *frames, "ValueError: the end"])
    assert len(traceback) > 6000
    chromium.open(site.url("/job", id=bury(traceback=traceback[-6000:])))
    chromium.print(tmp_path / "printed.pdf")
    assert len(re.findall(rb"/Type /Page\b", (tmp_path / "printed.pdf").read_bytes())) == 2
    chromium.devtools("Emulation.setEmulatedMedia", media="print")
    text = chromium.text
    assert [number for number in range(30, 60) if f"part{number}.py" not in text] == []
    assert "of libraries" not in text  # they are not folded
    assert "Schedules" not in text  # no navigation
