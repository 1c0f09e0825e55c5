from __future__ import annotations

import pytest
from setproctitle import getproctitle, setproctitle

from flask_backend.system.titles import WorkerTitle, is_master, read_worker, show_helper, show_master, show_worker


@pytest.fixture(autouse=True)
def own_title():
    title = getproctitle()
    yield
    setproctitle(title)


def test_a_title_can_be_read_back():
    show_worker("com.example/a(b)$", "send[1] 3s")
    assert read_worker(getproctitle()) == WorkerTitle("com.example/a(b)$", "send[1] 3s")
    assert not is_master(getproctitle())
    show_worker("q", "")
    assert read_worker(getproctitle()) == WorkerTitle("q", "idle")


def test_a_supervisors_title_is_not_a_workers():
    show_master(1, 4)
    assert is_master(getproctitle())
    assert read_worker(getproctitle()) is None


def test_a_helpers_title_is_neither_a_workers_nor_a_supervisors():
    show_helper("sends worker_exited")
    assert getproctitle() == "flask-backend: helper [sends worker_exited]"
    assert not is_master(getproctitle())
    assert read_worker(getproctitle()) is None


@pytest.mark.parametrize("title", ["", "vi flask-backend: master [1 queue, 1 worker]", "python -m flask_backend"])
def test_other_titles_are_ignored(title):
    assert not is_master(title)
    assert read_worker(title) is None
