"""The app of the demo: the gallery, and two tasks that fail the first time they run."""

import os
import signal

from thumbnails.app import QUEUE, app, backend

from flask_backend import current_job


@backend.task(QUEUE)
def fails_first() -> None:
    if current_job.attempt == 1:
        raise RuntimeError("as planned: the first attempt fails")
    app.logger.info("did fails_first")


@backend.task(QUEUE)
def kills_its_worker_first() -> None:
    if current_job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    app.logger.info("did kills_its_worker_first")


@app.post("/grief")
def send_grief():
    return {"fails_first": fails_first().id, "kills_its_worker_first": kills_its_worker_first().id}
