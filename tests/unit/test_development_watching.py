from __future__ import annotations

import pytest
from support.waiting import wait_until

from flask_backend.development import watching
from flask_backend.development.watching import (
    Polling,
    Watch,
    all_files,
    differences,
    is_python_file_of,
    python_files,
    stamps_of,
)


@pytest.fixture
def folder(tmp_path):
    for name in ("app.py", "sub/deep.py", "style.css", ".hidden.py", ".venv/lib.py", "__pycache__/x.py", "a.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def test_new_changed_and_missing_files_are_differences():
    before = {"same": (1, 1), "newer": (1, 1), "longer": (1, 1), "gone": (1, 1)}
    after = {"same": (1, 1), "newer": (2, 1), "longer": (1, 2), "new": (1, 1)}
    assert differences(before, after) == {"newer", "longer", "gone", "new"}


def test_a_missing_file_has_no_stamp(folder):
    assert set(stamps_of([str(folder / "app.py"), str(folder / "none.py")])) == {str(folder / "app.py")}


def test_python_files_are_those_that_a_user_writes(folder):
    assert set(python_files(str(folder))) == {str(folder / "app.py"), str(folder / "sub/deep.py")}


def test_a_single_path_is_judged_as_in_a_walk(folder):
    every = {str(path) for path in folder.rglob("*") if path.is_file()}
    assert {path for path in every if is_python_file_of(str(folder), path)} == set(python_files(str(folder)))
    assert not is_python_file_of(str(folder / "sub"), str(folder / "app.py"))
    assert not is_python_file_of(str(folder), str(folder))


def test_an_extra_folder_counts_with_all_its_files(folder):
    assert {str(folder / "style.css"), str(folder / ".venv/lib.py")} < set(all_files([str(folder)]))
    assert set(all_files([str(folder / "style.css")])) == {str(folder / "style.css")}


def test_polling_reports_each_change_once(folder):
    polling = Polling(lambda: python_files(str(folder)))
    assert polling.changes() == set()
    (folder / "new.py").write_text("")
    (folder / "app.py").write_text("1")
    (folder / "sub/deep.py").unlink()
    assert polling.changes() == {str(folder / name) for name in ("new.py", "app.py", "sub/deep.py")}
    assert polling.changes() == set()


@pytest.fixture(params=["polling", "watchfiles"])
def watch(request, folder, monkeypatch):
    if request.param == "watchfiles":
        pytest.importorskip("watchfiles")
    else:
        monkeypatch.setattr(watching, "native", lambda _folder: None)
    return Watch(str(folder), [str(folder / "style.css")])


class Looks:
    """Polls a watch at times that only the test knows."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._now = 0.0

    def __call__(self) -> set[str]:
        self._now += self._watch.wait_s(self._now)
        return self._watch.look(self._now)


def test_a_watch_sees_python_files_and_extra_paths(watch, folder):
    looks = Looks(watch)
    assert looks() == set()
    for name in ("app.py", "style.css", ".hidden.py"):
        (folder / name).write_text("changed")
    seen: set[str] = set()
    wait_until(lambda: seen.update(looks()) or len(seen) == 2, "two changes")
    assert seen == {str(folder / "app.py"), str(folder / "style.css")}
    assert looks() == set()


@pytest.fixture
def polled(folder, monkeypatch):
    monkeypatch.setattr(watching, "native", lambda _folder: None)
    return Watch(str(folder))


def test_changes_are_reported_together_when_no_more_follow(polled, folder):
    looks = Looks(polled)
    assert looks() == set()
    (folder / "app.py").write_text("1")
    assert looks() == set()
    (folder / "sub/deep.py").write_text("1")
    assert looks() == set()
    assert looks() == {str(folder / "app.py"), str(folder / "sub/deep.py")}
    assert looks() == set()


def test_a_poll_before_its_time_costs_nothing(polled, folder):
    assert polled.look(0.0) == set()
    (folder / "app.py").write_text("1")
    assert polled.wait_s(0.0) > 0
    assert polled.look(0.01) == set()
    assert polled._gathered == set()


def test_imported_modules_elsewhere_are_followed(polled, tmp_path_factory):
    module = tmp_path_factory.mktemp("elsewhere") / "module.py"
    module.write_text("")
    looks = Looks(polled)
    polled.follow([str(module)])
    assert looks() == set()
    module.write_text("1")
    polled.follow([])  # earlier changes are not forgotten
    wanted = [looks(), looks()]
    assert {str(module)} in wanted
