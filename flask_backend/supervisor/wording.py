"""The words of the supervisor's log lines, in one place. Pure.

A whole line is a template, which the logger fills in: tools that group records see the template. A part of a line is a
function, and so is a reason, which a policy returns and another line quotes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from flask_backend.deaths import Activity

# -- the supervisor ------------------------------------------------------------------------------------------

READY = "ready: %s"  # the plan
RESIZED = "now %s"  # the plan
NO_ROOM_FOR_MORE = "cannot add workers: the limit of file descriptors allows %d"
GROWS = "%s=%d (%s): one worker more: jobs were ready (now %d) and no worker was free for %.0f s"
SHRINKS = "%s=%d (%s): one worker fewer: not all were needed for %.0f s"
NO_ANSWER_ABOUT_QUEUES = "no answer about the queues: the numbers of workers stay as they are"
ANSWERS_ABOUT_QUEUES = "there are answers about the queues again: the numbers of workers may change"
OBSERVER_ENDED = "the process that looks at the queues %s; another one starts in %g s"  # a part
STOPPING = "%s: stopping"  # the reason
GIVING_UP = "%s: giving up"  # the reason


def summary(ready: int, wanted: int, busy: int, done_per_s: float | None, restarts: int) -> str:
    parts = [f"{ready} of {_counted(wanted, 'worker')} ready" if ready != wanted else _counted(wanted, "worker")]
    parts += [f"{busy} busy"]
    if done_per_s is not None:
        parts += [f"{done_per_s:g} done/s"]
    return ", ".join([*parts, _counted(restarts, "restart")])


def is_stopping(reason: str) -> str:
    return f"Stopping: {reason}"


def remark_on_reload(failure: str) -> str:
    return f"; reload failed, the old app goes on: {failure}" if failure else ""


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


# -- a child that lives --------------------------------------------------------------------------------------

CANNOT_FORK = "cannot fork a worker of %s: %s; trying again in %g s"
SUCCESSORS_WAIT = "%d workers of %s have not exited yet: their successors wait"
RECYCLED = "worker %d of %s is recycled: %s"
TOLD_AGAIN = "worker %d of %s does not drain: its code may handle the signal itself; sending it again"
KILLED_AFTER_LAST_JOB = "worker %d of %s %s: it is killed"
KILLED_WITH_STACKS = "worker %d of %s %s: its stacks follow, then it is killed"
KILLED_FOR_MEMORY = "worker %d of %s is killed: %s"
KILLED_AT_STOP = "%s: killing worker %d, which has no job but has not exited"
GIVES_BACK = "%s: worker %d gives back %s"
CANNOT_LEND = "cannot lend the socket to the supervisor: %s"
CANNOT_RECEIVE_LOANS = "cannot receive the sockets that workers lend: %s"
NO_DESCRIPTOR_FOR_LOAN = (
    "no file descriptor is left for the connection of worker %d: crashes by its job are not counted"
)
FAILED = "%s failed"  # the name of the child; a traceback follows


def unfinished(job: Activity) -> str:
    return f"job {job.job_id} ({job.label}) unfinished after {job.running_s:.1f} s"


def end_of_observer(exit_: object, *, is_overdue: bool) -> str:
    return "has hung, and was killed" if is_overdue else str(exit_)


def cannot_start_observer(error: object) -> str:
    return f"cannot be forked: {error}"


HAS_RUN_ITS_TASKS = "it has run its maximum number of tasks"


def is_too_large(private_bytes: int, limit_bytes: int, which: str = "") -> str:
    return f"its private memory is {private_bytes >> 20} MiB, over {which}{limit_bytes >> 20} MiB"


def was_not_ready(timeout_s: float) -> str:
    return f"was not ready within {timeout_s:g} s"


def did_not_exit(timeout_s: float) -> str:
    return f"did not exit within {timeout_s:g} s after its last job"


def did_not_end(job: Activity) -> str:
    return f"did not end job {job.job_id} ({job.label}) at its time limit"


def is_silent(silent_s: float) -> str:
    return f"has sent no heartbeat for {silent_s:.0f} s, though it has no job"


def overstays(drained_s: float, *, is_busy: bool) -> str:
    does = "still takes new jobs" if is_busy else "has no job, but does not exit"
    return f"was asked to drain {drained_s:.0f} s ago and {does}"


# -- a child that died: the death itself is worded by `Death` --------------------------------------------------

DEATH = "%s%s"  # the death, and a part
DEATH_WHILE_DRAINING = "%s: it was draining, and its job goes back"
DEATH_AFTER_LAST_JOB = "%s; its jobs are settled"
DEATH_OF_SURPLUS = "%s; it was one too many"
DEATH_NOT_REPLACED = "%s; not replaced: the others are more than the minimum"
DEATH_REPLACED = "%s; replaced %s"


def ran_old_code(*, is_old: bool) -> str:
    return "; it ran the old code" if is_old else ""


def replaced_in(delay_s: float) -> str:
    return f"in {delay_s:.1f} s" if delay_s else "at once"


def died_too_often(pool: str, times: int, within_s: float) -> str:
    return f"the workers of {pool} have died {times} times within {within_s:g} s and finished no job in between"


def cannot_start(pool: str) -> str:
    return f"no worker of {pool} can start, for the reason above"


def cannot_work(pool: str) -> str:
    return f"the workers of {pool} cannot work"


# -- its job -------------------------------------------------------------------------------------------------

NO_LOAN = "job %d goes back as it was: its worker has lent no socket"
CANNOT_FORK_SETTLER = "job %d goes back as it was: cannot fork a process to settle it: %s"
NOT_SETTLED = "job %d was not settled: its process %s"

# -- a reload ------------------------------------------------------------------------------------------------

CHECKING = "HUP: checking the app"
CHECK_REPEATED = "HUP: a check of the app is running; it will be repeated, as the app may have changed"
RELOAD_FAILED = "reload failed: %s; the old app goes on"


def generation_serves(number: int) -> str:
    return f"generation {number} serves"


def check_failed(exit_: object) -> str:
    return f"the check of the new app {exit_}"


# -- events for the app --------------------------------------------------------------------------------------

EVENTS_LOST = "events for the app lost: %d (too many were waiting, or no time was left)"
EVENTS_NOT_SENT = "%s may not have reached all receivers: %s"
CANNOT_FORK_SENDER = "cannot fork a process that sends %s to the app: %s"
RECEIVER_FAILED = "a receiver of %s failed"  # a traceback follows
SERVICE_ENDED = "the process that %s %s; replaced %s"
CANNOT_FORK_SERVICE = "cannot fork the process that %s: %s"
HELPER_OVERDUE = "helper %d of the old code did not end in time and was killed"


def some_events(names: Iterable[str]) -> str:
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in Counter(names).items())


def end_of_sender(exit_: object, *, is_overdue: bool) -> str:
    return "they took too long, and their process was killed" if is_overdue else f"their process {exit_}"


def is_ready(plan: object) -> str:
    return f"ready: {plan}"


def is_reloaded(plan: object) -> str:
    return f"reloaded: {plan}"
