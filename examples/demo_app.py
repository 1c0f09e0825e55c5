"""The app of the demo: the gallery, and two tasks that come to grief the first time they run."""

import os
import signal

from thumbnails.app import GALLERY, QUEUE, app, backend


@backend.task(QUEUE)
def fails_first(name: str) -> None:
    if is_first_run(name):
        raise RuntimeError("as planned: the first attempt fails")
    app.logger.info("did fails_first")


@backend.task(QUEUE)
def kills_its_worker_first(name: str) -> None:
    if is_first_run(name):
        os.kill(os.getpid(), signal.SIGKILL)
    app.logger.info("did kills_its_worker_first")


@app.post("/grief")
def send_grief():
    return {"fails_first": fails_first("failed").id, "kills_its_worker_first": kills_its_worker_first("killed").id}


def is_first_run(name: str) -> bool:
    """Whatever process asks first gets a yes, and leaves a file that says no to all others."""
    try:
        (GALLERY / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
