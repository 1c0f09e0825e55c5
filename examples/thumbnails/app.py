"""A gallery that makes the thumbnails of its photographs in the background. Start it in this folder, with

    flask run
    flask-backend supervise --workers 4

Both find Beanstalkd by the environment variable BACKEND_CONNECTION_URI, or else on this machine.
"""

import hashlib
import io
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from flask import Flask, abort, flash, redirect, render_template, request, send_file, send_from_directory, url_for
from PIL import Image, ImageOps
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.utils import secure_filename

from flask_backend import Backend, BrokerConnectionError, BulkError, Bury, Discard, Job, JobState, Retry

QUEUE = "com.example/thumbnails"
SHIPPED = Path(__file__).parent / "photos"
FORMATS = ("JPEG", "PNG", "WEBP")  # accepted uploads
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"}  # MPO is how some cameras write JPEG
KEPT = timedelta(days=1)  # how long an upload is kept
LATER = 100_000  # a priority behind that of other calls, 65536

# A file of a few kilobytes can claim a size that fills the memory when it is read: refuse it instead of warning.
Image.MAX_IMAGE_PIXELS = 40_000_000
warnings.simplefilter("error", Image.DecompressionBombWarning)

app = Flask(__name__)
app.config.from_mapping(SECRET_KEY="development", MAX_CONTENT_LENGTH=16 << 20, GALLERY_FOLDER=app.instance_path)
app.config.from_prefixed_env()  # FLASK_SECRET_KEY, FLASK_GALLERY_FOLDER
backend = Backend(app)

GALLERY = Path(app.config["GALLERY_FOLDER"])
UPLOADS, THUMBNAILS = GALLERY / "uploads", GALLERY / "thumbnails"
for folder in (UPLOADS, THUMBNAILS):
    folder.mkdir(parents=True, exist_ok=True)

VARIANTS = {
    "wide": lambda image: ImageOps.fit(image, (128, 88), centering=(0.5, 0.2)),
    "square": lambda image: ImageOps.fit(image, (88, 88), centering=(0.5, 0.2)),
    "grey": lambda image: ImageOps.grayscale(ImageOps.fit(image, (88, 88), centering=(0.5, 0.2))),
}


# -- in the workers ------------------------------------------------------------------------------------------


@backend.before_first_task(QUEUE)
def load_decoders():
    Image.init()  # otherwise Pillow loads them at the first image, and the first task waits for that


# A full disk, or a share that is away, may recover in a minute; any other error is for a person to look at.
@backend.task(QUEUE, retry=Retry(max_retries=5, on=OSError))
def thumbnail(name: str) -> None:
    """Make every variant of one photograph.

    The task is idempotent and may be killed at any time: the same photograph gives the same files, and a file is
    either complete or absent.
    """
    started = time.perf_counter()
    photo = photos().get(name)
    if photo is None:
        raise Discard("the photograph was deleted meanwhile")
    data = photo.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as source:
            image = ImageOps.exif_transpose(source).convert("RGB")
    except Exception as error:  # decoders raise many kinds of errors for a broken file
        raise Bury(f"{name} cannot be read: {error}") from error
    for variant, make in VARIANTS.items():
        with whole_file(THUMBNAILS / f"{name}.{variant}.jpg") as part:
            make(image).save(part, quality=85)
    app.logger.info("made the thumbnails of %s in %d ms", name, (time.perf_counter() - started) * 1000)


@backend.task(QUEUE)
def forget(name: str) -> None:
    """Delete an upload and its thumbnails."""
    for path in (UPLOADS / name, *(THUMBNAILS / f"{name}.{variant}.jpg" for variant in VARIANTS)):
        path.unlink(missing_ok=True)


# -- in the web server ---------------------------------------------------------------------------------------


# The jobs scheduled by this process, by photograph. Only for its page: the tasks run even if the process ends.
jobs: dict[str, Job] = {}


@app.get("/")
def index():
    names = photos()
    states = states_of_jobs()
    made = {(name, key): modified(THUMBNAILS / f"{name}.{key}.jpg") for name in names for key in VARIANTS}
    return render_template("gallery.html", names=names, made=made, jobs=jobs, states=states)


def states_of_jobs() -> dict[str, JobState]:
    """Return the states of the jobs that are not done."""
    try:
        states = {name: job.state() for name, job in jobs.copy().items()}
    except BrokerConnectionError:
        return {}
    return {name: state for name, state in states.items() if state is not JobState.DONE}


@app.post("/thumbnails")
def make_all():
    names = list(photos())
    # These are less urgent than a single one.
    jobs.update(zip(names, thumbnail.options(priority=LATER).map(names), strict=True))
    return redirect(url_for("index"))


@app.post("/thumbnails/<name>")
def make_one(name: str):
    if name not in photos():
        abort(404)
    jobs[name] = thumbnail(name)
    return redirect(url_for("index"))


@app.post("/photos")
def upload():
    name = keep(request.files["photo"])
    jobs[name] = thumbnail(name)
    forget.options(delay=KEPT)(name)
    return redirect(url_for("index"))


@app.get("/photos/<name>")
def show_photo(name: str):
    return send_file(photos().get(name) or abort(404))


@app.get("/thumbnails/<name>/<variant>")
def show_thumbnail(name: str, variant: str):
    return send_from_directory(THUMBNAILS, f"{name}.{variant}.jpg")


class UploadError(Exception):
    """An upload cannot be kept; the text is for the person who sent it."""


@app.errorhandler(UploadError)
@app.errorhandler(RequestEntityTooLarge)
@app.errorhandler(BrokerConnectionError)
@app.errorhandler(BulkError)
def tell_problem(error: Exception):
    app.logger.warning("%s (%s)", error, error.__cause__)
    match error:
        case BrokerConnectionError() | BulkError():
            flash("Thumbnails cannot be made just now. Try again in a minute.")
        case RequestEntityTooLarge():
            flash(f"That file is too large: at most {app.config['MAX_CONTENT_LENGTH'] >> 20} MB.")
        case _:
            flash(str(error))
    return redirect(url_for("index"))


# -- the files -----------------------------------------------------------------------------------------------


def photos() -> dict[str, Path]:
    """Return every photograph's file by its name."""
    files = [*sorted(UPLOADS.iterdir()), *sorted(SHIPPED.iterdir())]
    return {file.name: file for file in files if file.suffix in SUFFIXES.values()}


def keep(upload: FileStorage) -> str:
    """Keep an upload that begins as a photograph, and return its name. The task reads the whole file."""
    data = upload.read()
    if not upload.filename or not data:
        raise UploadError("Choose a photograph first.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            suffix = SUFFIXES[image.format]
    except Exception as error:  # decoders raise many kinds of errors for other files
        raise UploadError(f"“{upload.filename}” is not a JPEG, PNG or WebP image that can be read.") from error
    stem = Path(secure_filename(upload.filename)).stem[:50] or "photo"
    # The name contains a hash of the content: photographs never share a name, and duplicates are kept once.
    name = f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}{suffix}"
    with whole_file(UPLOADS / name) as part:
        part.write_bytes(data)
    return name


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file that appears at ``path`` only when it is complete."""
    with TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        part = Path(folder) / path.name
        yield part
        part.replace(path)


def modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
