"""Buried jobs with their stories, as workers leave them, and quickly."""

from __future__ import annotations

from flask_backend.broker.connection import Connection
from flask_backend.config import Settings
from flask_backend.names import failures_tube
from flask_backend.stories import Story, here_and_now


def a_note(job_id: int, queue: str = "q", **told) -> Story:
    return Story(**{"job": job_id, "queue": queue, "reason": "failed once", **here_and_now(), **told})


def put_note(broker, note: Story) -> int:
    return broker.put(failures_tube(note.queue), note.encode())


def bury_many(settings: Settings, queue: str, count: int, body: bytes = b"{}", **told) -> list[int]:
    """Bury jobs with their stories; return their ids. A field of the story may be a function of the job's number."""
    worker = Connection(settings.address, settings.timeout_s, watch=queue)
    try:
        worker.ask([b"use %b\r\n" % queue.encode()])
        puts = worker.ask([b"put 0 0 60 %d\r\n%b\r\n" % (len(body), body)] * count)
        ids = [int(reply.words[0]) for reply in puts]
        worker.ask([b"reserve-job %d\r\n" % job_id for job_id in ids])
        worker.ask([b"use %b\r\n" % failures_tube(queue).encode()])
        notes: list[bytes] = []
        for number, job_id in enumerate(ids):
            fields = {name: value(number) if callable(value) else value for name, value in told.items()}
            note = a_note(job_id, queue, **fields)
            encoded = note.encode()
            notes.append(b"put %d 0 60 %d\r\n%b\r\n" % (note.priority, len(encoded), encoded))
        worker.ask(notes)
        worker.ask([b"bury %d 0\r\n" % job_id for job_id in ids])
        return ids
    finally:
        worker.close()
