"""The examples do what they describe: real programs, a real broker, real pages."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import sys
import sysconfig
import zlib
from pathlib import Path

import psutil
import pytest
from helpers import EXAMPLES, Browser, Program
from PIL import Image
from support.beanstalkd import Beanstalkd
from support.waiting import wait_until
from werkzeug.datastructures import FileStorage

ORIGINAL = EXAMPLES / "original"
THUMBNAILS = EXAMPLES / "thumbnails"
PHOTOS = sorted(path.name for path in (THUMBNAILS / "photos").glob("*.jpg"))
SIZES = {"wide": (128, 88), "square": (88, 88), "grey": (88, 88)}
FLASK_BACKEND = Path(sysconfig.get_path("scripts")) / "flask-backend"

TASKS = "com.example/default"
INBOX = "com.example/integrate-with-external"
OUTBOX = "com.external/integrate-with-example"
GALLERY = "com.example/thumbnails"
RUNNING = r"Running on (http://127\.0\.0\.1:\d+)"


@pytest.fixture
def start(tmp_path):
    """Start programs that do not outlive the test."""
    programs: list[Program] = []

    def start(*command, **options) -> Program:
        programs.append(Program(*command, log=tmp_path / f"{len(programs)}.log", **options))
        return programs[-1]

    yield start
    for program in reversed(programs):
        program.end()


# -- the example of the original README ----------------------------------------------------------------------


@pytest.fixture
def variant(tmp_path):
    """Write the original example with one change; return its folder."""

    def write(old: str, new: str) -> Path:
        text = (ORIGINAL / "example.py").read_text()
        assert text.count(old) == 1
        folder = tmp_path / "example"
        folder.mkdir()
        (folder / "example.py").write_text(text.replace(old, new))
        shutil.copy(ORIGINAL / "settings.py", folder)
        return folder

    return write


def test_original_example_schedules_from_its_page_and_talks_to_external_systems(start, broker):
    example = (sys.executable, "example.py")
    web = start(*example, "runserver", "-p", "0", cwd=ORIGINAL, env=broker.env)
    worker = start(*example, "backend", TASKS, cwd=ORIGINAL, env=broker.env)
    receiver = start(*example, "backend", INBOX, cwd=ORIGINAL, env=broker.env)

    browser = Browser(web.wait_for(RUNNING)[1])
    assert "Backend task scheduled" not in browser.get()
    assert "Backend task scheduled, check logs." in browser.post("/")
    assert "Backend task scheduled" not in browser.get()

    worker.wait_for(r"Initializing backend\.")
    worker.wait_for("Hello, world!")
    assert json.loads(broker.take(OUTBOX)) == {"salutation": "hello", "target": "world"}

    broker.put(INBOX, json.dumps({"from": "elsewhere", "n": [1, 2]}).encode())
    receiver.wait_for(r"Received message from external system \{'from': 'elsewhere', 'n': \[1, 2\]\}")
    assert "Initializing" not in receiver.output  # the hook of another queue

    assert worker.stop() == 0
    assert receiver.stop() == 0
    assert broker.jobs() == 0


def test_original_example_runs_under_the_supervisor(start, broker):
    supervisor = start(
        FLASK_BACKEND, "--app", "example", "supervise", "--queue", f"{TASKS}=2", "--queue", INBOX, "--workers", "1",
        cwd=ORIGINAL, env=broker.env,
    )  # fmt: skip
    supervisor.wait_for("supervisor: ready")
    children = psutil.Process(supervisor.process.pid).children()
    assert len(children) == 3

    broker.put(TASKS, json.dumps({"endpoint": "hello", "args": ["world"], "kwargs": {}}).encode())
    broker.put(INBOX, json.dumps("a message").encode())
    supervisor.wait_for("Hello, world!")
    supervisor.wait_for("Received message from external system 'a message'")
    assert json.loads(broker.take(OUTBOX)) == {"salutation": "hello", "target": "world"}

    assert supervisor.stop() == 0
    assert not [child for child in children if child.is_running()]
    assert broker.jobs() == 0


def test_supervise_works_through_flask_script(start, broker):
    supervisor = start(
        sys.executable, "example.py", "backend", "supervise", "--queue", TASKS, "--workers", "2",
        cwd=ORIGINAL, env=broker.env,
    )  # fmt: skip
    supervisor.wait_for("supervisor: ready")
    assert len(psutil.Process(supervisor.process.pid).children()) == 2
    broker.put(TASKS, json.dumps({"endpoint": "hello", "args": ["world"]}).encode())
    supervisor.wait_for("Hello, world!")
    assert supervisor.stop() == 0


def test_help_through_flask_script_is_that_of_the_backend(start):
    shown = start(sys.executable, "example.py", "backend", "--help", cwd=ORIGINAL)
    assert shown.process.wait(20) == 0
    assert "Usage: example.py backend" in shown.output
    for command in ("check", "supervise", "worker"):
        assert re.search(rf"^  {command} ", shown.output, re.MULTILINE)


def test_wrong_queue_through_flask_script_names_the_existing_ones(start):
    worker = start(sys.executable, "example.py", "backend", "com.example/defualt", cwd=ORIGINAL)
    assert worker.process.wait(20) == 3
    assert "com.example/defualt" in worker.output
    assert TASKS in worker.output
    assert INBOX in worker.output


def test_backend_command_works_as_an_instance(start, broker, variant):
    folder = variant("'backend', BackendCommand)", "'backend', BackendCommand())")
    worker = start(sys.executable, "example.py", "backend", TASKS, cwd=folder, env=broker.env)
    broker.put(TASKS, json.dumps({"endpoint": "hello", "args": ["world"]}).encode())
    worker.wait_for("Hello, world!")
    assert worker.stop() == 0


def test_original_text_with_its_ellipsis_serves_the_page_and_runs_the_worker(start, broker, variant):
    folder = variant("'settings'", "...")
    web = start(sys.executable, "example.py", "runserver", "-p", "0", cwd=folder, env=broker.env)
    worker = start(sys.executable, "example.py", "backend", TASKS, cwd=folder, env=broker.env)
    assert "SEND" in Browser(web.wait_for(RUNNING)[1]).get()
    broker.put(TASKS, json.dumps({"endpoint": "hello", "args": ["world"]}).encode())
    worker.wait_for("Hello, world!")
    assert worker.stop() == 0


# -- thumbnails ----------------------------------------------------------------------------------------------


class Gallery:
    """The thumbnails app, served; its workers start when a test requests it."""

    def __init__(self, start, broker: Beanstalkd, folder: Path) -> None:
        self.folder = folder
        self._start = start
        self._env = broker.env | {"FLASK_GALLERY_FOLDER": str(folder)}
        self.web = start(sys.executable, "-m", "flask", "run", "--port", "0", cwd=THUMBNAILS, env=self._env)
        self.browser = Browser(self.web.wait_for(RUNNING)[1])

    def supervise(self) -> Program:
        return self._start(FLASK_BACKEND, "supervise", "--workers", "2", cwd=THUMBNAILS, env=self._env)

    def thumbnails(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "thumbnails").iterdir() if not path.name.startswith("."))

    def upload(self, data: bytes, name: str) -> str:
        return self.browser.post("/photos", photo=FileStorage(io.BytesIO(data), name))

    def problem(self, page: str) -> str | None:
        match = re.search(r'role="alert">(.*?)</p>', page)
        return match[1] if match else None


@pytest.fixture
def gallery(start, broker, tmp_path):
    return Gallery(start, broker, tmp_path / "gallery")


def test_one_button_makes_every_thumbnail(gallery, broker):
    page = gallery.browser.get()
    assert page.count("not made") == 3 * len(PHOTOS)
    assert "http-equiv" not in page
    page = gallery.browser.post("/thumbnails")
    assert page.count(">waiting<") == 3 * len(PHOTOS)
    assert 'http-equiv="refresh"' in page
    assert broker.jobs() == len(PHOTOS)

    supervisor = gallery.supervise()
    wait_until(lambda: broker.jobs() == 0, "every job has left its queue")
    assert gallery.thumbnails() == sorted(
        f"{photo}.{variant}.jpg" for photo, variant in itertools.product(PHOTOS, SIZES)
    )
    for photo, variant in itertools.product(PHOTOS, SIZES):
        with Image.open(gallery.folder / "thumbnails" / f"{photo}.{variant}.jpg") as image:
            image.load()
            assert (image.format, image.size, image.mode) == (
                "JPEG",
                SIZES[variant],
                "L" if variant == "grey" else "RGB",
            )

    page = gallery.browser.get()
    assert page.count(" thumbnail of ") == 3 * len(PHOTOS)
    assert "http-equiv" not in page
    assert supervisor.stop() == 0


def test_the_button_of_a_photograph_makes_its_own_thumbnails_only(gallery, broker):
    page = gallery.browser.post("/thumbnails/chelsea.jpg")
    assert page.count(">waiting<") == 3
    gallery.supervise()
    wait_until(lambda: broker.jobs() == 0, "the job has left its queue")
    assert gallery.thumbnails() == sorted(f"chelsea.jpg.{variant}.jpg" for variant in SIZES)


@pytest.mark.parametrize(("format_", "suffix"), [("PNG", "png"), ("WEBP", "webp"), ("JPEG", "jpg"), ("MPO", "jpg")])
def test_an_uploaded_photograph_gets_thumbnails(gallery, broker, format_, suffix):
    stream = io.BytesIO()
    Image.new("RGB", (300, 200), "teal").save(stream, format_)
    page = gallery.upload(stream.getvalue(), f"../My pool.{suffix}")
    assert gallery.problem(page) is None
    (upload,) = (gallery.folder / "uploads").iterdir()
    assert re.fullmatch(rf"My_pool-[0-9a-f]{{8}}\.{suffix}", upload.name)
    assert upload.read_bytes() == stream.getvalue()

    gallery.supervise()
    wait_until(lambda: len(gallery.thumbnails()) == 3, "the thumbnails are made")
    assert gallery.thumbnails() == sorted(f"{upload.name}.{variant}.jpg" for variant in SIZES)
    wait_until(lambda: f"wide thumbnail of {upload.name}" in gallery.browser.get(), "the page shows them")


def test_an_upload_is_deleted_after_a_day_with_its_thumbnails(gallery, broker):
    gallery.upload((THUMBNAILS / "photos" / "chelsea.jpg").read_bytes(), "cat.jpg")
    gallery.supervise()
    wait_until(lambda: len(gallery.thumbnails()) == 3, "the thumbnails are made")
    with broker.client(GALLERY) as client:
        job = client.peek_delayed()
        assert client.stats_job(job.id)["delay"] == 24 * 60 * 60
        client.kick_job(job.id)
    wait_until(lambda: broker.jobs() == 0, "the job has left its queue")
    assert gallery.thumbnails() == []
    assert list((gallery.folder / "uploads").iterdir()) == []


def test_a_single_photograph_comes_before_all(gallery, broker):
    gallery.browser.post("/thumbnails")
    gallery.browser.post("/thumbnails/falcon-9.jpg")
    calls = [json.loads(broker.take(GALLERY))["args"] for _ in range(len(PHOTOS) + 1)]
    assert calls == [["falcon-9.jpg"], *([photo] for photo in PHOTOS)]


def test_a_file_that_is_not_a_photograph_is_refused_where_it_was_uploaded(gallery, broker):
    whole = (THUMBNAILS / "photos" / "chelsea.jpg").read_bytes()
    no_image = "is not a JPEG, PNG or WebP image that can be read"
    assert no_image in gallery.problem(gallery.upload(b"Dear diary, ...", "diary.jpg"))
    assert no_image in gallery.problem(gallery.upload(whole[:100], "broken-off.jpg"))
    assert no_image in gallery.problem(gallery.upload(png_that_claims(60_000, 60_000), "bomb.png"))
    assert "Choose a photograph" in gallery.problem(gallery.upload(b"", ""))
    assert "Choose a photograph" in gallery.problem(gallery.upload(b"", "empty.jpg"))
    assert broker.jobs() == 0
    assert list((gallery.folder / "uploads").iterdir()) == []


def test_a_broken_photograph_is_shown_as_failed_and_buried_with_the_reason(gallery, broker):
    whole = (THUMBNAILS / "photos" / "chelsea.jpg").read_bytes()
    assert gallery.problem(gallery.upload(whole[: len(whole) // 2], "broken-off.jpg")) is None
    supervisor = gallery.supervise()
    wait_until(lambda: broker.count(GALLERY, "buried") == 1, "the job is buried")
    supervisor.wait_for(r"decided Bury: broken-off-\w+\.jpg cannot be read: image file is truncated")
    page = gallery.browser.get()
    assert page.count(">failed<") == 3
    assert "http-equiv" not in page


def test_a_missing_folder_is_tried_again(gallery):
    supervisor = gallery.supervise()
    supervisor.wait_for("supervisor: ready")
    (gallery.folder / "thumbnails").rmdir()
    gallery.browser.post("/thumbnails/chelsea.jpg")
    wait_until(lambda: ">trying later<" in gallery.browser.get(), "the page shows it")
    (gallery.folder / "thumbnails").mkdir()
    supervisor.wait_for(r"made the thumbnails of chelsea\.jpg in \d+ ms \[thumbnail job 1 attempt [2-6]\]")


def test_a_photograph_deleted_before_its_task_runs_is_given_up(gallery, broker):
    gallery.upload((THUMBNAILS / "photos" / "chelsea.jpg").read_bytes(), "cat.jpg")
    (upload,) = (gallery.folder / "uploads").iterdir()
    upload.unlink()
    supervisor = gallery.supervise()
    supervisor.wait_for(r"decided Discard: the photograph was deleted meanwhile")
    assert broker.count(GALLERY, "buried") == broker.count(GALLERY, "ready") == 0


def test_an_unreachable_broker_is_reported_on_the_page(gallery, broker):
    broker.stop()
    page = gallery.browser.post("/thumbnails")
    assert "cannot be made just now" in gallery.problem(page)
    assert ">waiting<" not in page
    gallery.web.wait_for(f"127.0.0.1:{broker.port}")  # the log names the unreachable one
    assert "cannot be made just now" in gallery.problem(gallery.browser.post("/thumbnails/chelsea.jpg"))


def test_the_page_works_without_the_broker(gallery, broker):
    assert gallery.browser.post("/thumbnails/chelsea.jpg").count(">waiting<") == 3
    broker.stop()
    page = gallery.browser.get()
    assert (page.count("not made"), page.count(">waiting<")) == (3 * len(PHOTOS), 0)


def test_its_own_tests_pass_which_need_no_broker(start):
    tests = start(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_app.py", cwd=THUMBNAILS)
    assert tests.process.wait(30) == 0, tests.output


def test_photographs_are_small_and_each_has_its_source_named():
    sources = (THUMBNAILS / "photos" / "SOURCES.md").read_text()
    named = set(re.findall(r"^\| `(.+?)` \|", sources, re.MULTILINE))
    assert named == set(PHOTOS)
    for photo in PHOTOS:
        assert (THUMBNAILS / "photos" / photo).stat().st_size < 150_000


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG whose header announces more pixels than its few bytes hold."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = width.to_bytes(4) + height.to_bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)
