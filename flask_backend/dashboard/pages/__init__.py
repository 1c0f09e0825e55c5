"""The pages and their acts. ``ALL`` is in the order of the navigation."""

from . import actions, batches, failures, job, queue, queues, schedules, workers

ALL = (
    queues.pages,
    queue.pages,
    failures.pages,
    job.pages,
    workers.pages,
    schedules.pages,
    batches.pages,
    actions.pages,
)
