"""The tests of the gallery, without a broker and without a worker. Run them in this folder, with `pytest`."""

import importlib
import io
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from flask_backend import JobState

pytest_plugins = ["flask_backend.testing.plugin"]

CHELSEA = (Path(__file__).parent / "photos" / "chelsea.jpg").read_bytes()


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    """Import the app again: it reads its settings when it is imported."""
    monkeypatch.setenv("BACKEND_CONNECTION_URI", "memory://")
    monkeypatch.setenv("FLASK_GALLERY_FOLDER", str(tmp_path))
    monkeypatch.delitem(sys.modules, "app", raising=False)
    return importlib.import_module("app")


@pytest.fixture
def app(gallery):
    return gallery.app


@pytest.fixture
def client(app):
    return app.test_client()


def upload(client, data):
    return client.post("/photos", data={"photo": (io.BytesIO(data), "cat.jpg")}, follow_redirects=True).text


def made(gallery):
    return sorted(path.suffixes[-2] for path in gallery.THUMBNAILS.iterdir())


def test_an_upload_gets_thumbnails_and_is_forgotten_after_a_day(client, gallery, backend_memory):
    assert ">waiting<" in upload(client, CHELSEA)
    [name] = gallery.jobs
    backend_memory.assert_scheduled(gallery.thumbnail, name)
    backend_memory.assert_scheduled(gallery.forget, name, delay=gallery.KEPT)

    backend_memory.drain()
    assert made(gallery) == [".grey", ".square", ".wide"]
    assert f"wide thumbnail of {name}" in client.get("/").text

    backend_memory.move_time(timedelta(days=1))
    backend_memory.drain()
    assert made(gallery) == []


def test_one_button_makes_all_behind_single_ones(client, gallery, backend_memory):
    client.post("/thumbnails")
    client.post("/thumbnails/hubble-deep-field.jpg")
    calls = [ran.scheduled.args for ran in backend_memory.drain()]
    assert calls == [["hubble-deep-field.jpg"], *([name] for name in gallery.photos())]


def test_what_is_no_photograph_is_refused_and_nothing_scheduled(client, backend_memory):
    assert "is not a JPEG, PNG or WebP image" in upload(client, b"Dear diary, ...")
    assert backend_memory.scheduled() == []


def test_a_photograph_that_turns_out_to_be_broken_is_buried_with_the_reason(client, backend_memory):
    upload(client, CHELSEA[: len(CHELSEA) // 2])
    backend_memory.drain()
    [buried] = backend_memory.buried()
    assert "cannot be read: image file is truncated" in buried.note.reason
    assert ">failed<" in client.get("/").text


def test_a_folder_that_is_away_is_tried_again(gallery, backend_memory, app):
    with app.app_context():
        job = gallery.thumbnail("chelsea.jpg")
    gallery.THUMBNAILS.rmdir()
    with pytest.raises(FileNotFoundError):
        backend_memory.drain()
    assert job.state() is JobState.DELAYED

    gallery.THUMBNAILS.mkdir()
    backend_memory.move_time(10)
    backend_memory.drain()
    assert job.state() is JobState.DONE
    assert made(gallery) == [".grey", ".square", ".wide"]
