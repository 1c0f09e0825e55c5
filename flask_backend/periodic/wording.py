"""The words of the scheduler's log lines."""

from __future__ import annotations

WAITS_FOR_BROKER = "periodic tasks wait for the broker: %s"
CONNECTED_AGAIN = "periodic tasks: connected to the broker again"
BEGINS = "the periodic tasks of %s begin now: the broker has no state of them"
PUT_AGAIN = "the state of the periodic tasks of %s was lost: what is known here is put again"
UNREADABLE = "job %d is %s; it is replaced. Its body: %s"
DIED_BEFORE = (
    "a scheduler died while it held the periodic tasks of %s: the call that is scheduled now may have been scheduled "
    "before, with the same id"
)
REFUSED = "the periodic task %s is not scheduled: %s"
CODE_RAISED = "the periodic task %s is not scheduled: the app's code raised"
OVERLAPS = "the periodic task %s is skipped: its last call, job %d, is unfinished"
AHEAD = (
    "the periodic task %s of %s was scheduled up to %d s ahead of this clock: it was set back, and its slots count "
    "from now on; some may be scheduled twice"
)
CANNOT_TELL = "cannot tell when the periodic task %s is due: %s"
HANGS = (
    "the call of the periodic task %s of %s takes longer than %d s in the app's middleware or in a receiver of its "
    "signals: this process is killed now, and replaced"
)
