"""The death of a worker that held a job."""

from __future__ import annotations

from flask_backend.deaths import Activity, Death, Exit, ExitKind


def death_at(job_id: int) -> Death:
    return Death(
        pool="q",
        kind=ExitKind.DIED_BUSY,
        exit=Exit(pid=4711, status=None, signal=9, max_rss_bytes=50 << 20),
        lived_s=60.0,
        was_ready=True,
        activity=Activity(job_id, "hello", 1.5),
        private_bytes=30 << 20,
        has_left=False,
    )
