"""Explain why a job has not run, from the facts about it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from flask_backend.broker.cursors import Cursor
from flask_backend.broker.stats import JobRecord, Queue
from flask_backend.config import Settings
from flask_backend.errors import MessageDecodeError
from flask_backend.message import decode, decode_json
from flask_backend.quantities import count_of, show_seconds, show_time
from flask_backend.registry import Handler, Handlers
from flask_backend.retry import Retry
from flask_backend.stories import Story
from flask_backend.visible import visible

from .bodies import GONE, UNTOLD, expiry_in, show_cursor, show_story
from .compatibility import Incompatibility, check_compatibility
from .console import Console
from .limits import LimitUse

Numbers = Mapping[str, int | float | None]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job has not run: a stable code for programs, a sentence, and the numbers in it."""

    code: str
    text: str
    numbers: Numbers = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a job at ``now``, in seconds since the epoch.

    ``story`` is set for a buried job, ``expires_at``, in seconds since the epoch, for a call that expires, and
    ``cursor`` for one whose task has saved a checkpoint, which does not expire any more; ``misfit``, ``retry`` and
    ``limit`` are known if the job's queue is in a loaded app.
    """

    record: JobRecord
    queue: Queue
    now: float
    story: Story | None = None
    misfit: Incompatibility | None = None
    retry: Retry | None = None
    expires_at: float | None = None
    cursor: Cursor | None = None
    limit: LimitUse | None = None

    @property
    def is_expired(self) -> bool:
        return self.cursor is None and self.expires_at is not None and self.expires_at <= self.now

    @property
    def attempt(self) -> int:
        """The number of the next attempt, or of the running one."""
        return self.record.attempts.number

    @property
    def allowed(self) -> int | None:
        return self.retry.allowed(self.record.attempts) if self.retry else None

    @property
    def nth_attempt(self) -> str:
        return f"attempt {self.attempt}" + (f" of {self.allowed}" if self.allowed else "")


@dataclass(frozen=True, slots=True)
class KnownApp:
    """An app that is loaded: its queues, and its settings."""

    queues: Mapping[str, Handlers]
    settings: Settings


def gather(console: Console, record: JobRecord, body: bytes, story: Story | None, app: KnownApp | None) -> Facts | None:
    """Return the facts that explain a job, with its ``story`` if it is buried; None if its queue is gone."""
    queue = console.queue(record.queue)
    if queue is None:
        return None
    cursor = console.cursor_of(record, body)
    if cursor is not None:
        cursor = replace(cursor, value=console.masking.value(cursor.value))
    facts = Facts(record, queue, time.time(), story=story, expires_at=expiry_in(body), cursor=cursor)
    handlers = app.queues.get(record.queue) if app else None
    if app is None or handlers is None:
        return facts
    retry = _retry_of(handlers, body, app.settings.retry)
    limit = console.limit(handlers.limit.name) if handlers.limit else None
    return replace(facts, misfit=check_compatibility(handlers, body), retry=retry, limit=limit)


def _retry_of(handlers: Handlers, body: bytes, default: Retry) -> Retry | None:
    """Return the retry policy of a job; None if it is never tried."""
    try:
        if handlers.receiver is not None:
            decode_json(body)
            handler: Handler | None = handlers.receiver
        else:
            handler = handlers.tasks.get(decode(body).endpoint)
    except MessageDecodeError:
        return None
    return (handler and handler.retry) or default


def gone(job_id: int) -> Reason:
    return Reason("gone", f"Job {job_id} {GONE}.")


def explain(facts: Facts) -> Reason:
    """Return the reason that matters most; the next one, if any, becomes a second sentence, the checkpoint the last."""
    first, *others = islice(_reasons(facts), 2)
    numbers = {"age_s": facts.record.age_s, **first.numbers}
    if facts.expires_at is not None:
        numbers |= {"expires_at": facts.expires_at}
    if facts.record.state != "buried":  # which has no next attempt
        numbers |= {"attempt": facts.attempt, "allowed": facts.allowed}
    sentences = [each.text for each in (first, *others)]
    if facts.cursor is not None:
        numbers |= {"cursor_saves": facts.cursor.number}
        sentences.append(f"It goes on at its last saved checkpoint, cursor {show_cursor(facts.cursor.value)}.")
    return Reason(first.code, " ".join(sentences), numbers)


def _reasons(facts: Facts) -> Iterator[Reason]:
    """Yield every reason that keeps a job from running, starting with the first one to resolve."""
    if facts.record.state in ("ready", "delayed") and facts.is_expired:
        yield _expired(facts)
    match facts.record.state:
        case "reserved":
            yield _reserved(facts)
            yield from _limited(facts)
        case "buried":
            yield _buried(facts)
            if facts.is_expired:
                yield _expired(facts)
            yield from _misfit(facts)
        case "delayed" if facts.attempt > 1:
            yield from _misfit(facts)  # most likely why it failed
            yield _retry(facts)
            yield from _held_up(facts)
        case "delayed":
            yield _delayed(facts)
            yield from _held_up(facts)
            yield from _misfit(facts)
        case _:
            held_up = list(_held_up(facts))
            yield from held_up
            yield from _misfit(facts)
            if not held_up:
                yield _in_turn(facts)
    if facts.record.state in ("ready", "delayed") and not facts.is_expired:
        yield from _will_expire(facts)


def _reserved(facts: Facts) -> Reason:
    job = facts.record
    silent_s = job.ttr_s - job.time_left_s
    numbers = {"silent_s": silent_s, "ttr_s": job.ttr_s, "time_left_s": job.time_left_s}
    heard = f"last heard from {show_seconds(silent_s)} ago"
    if job.time_left_s < 0:
        text = (
            f"A worker has job {job.id}, {facts.nth_attempt}, and was {heard}: its TTR of "
            f"{show_seconds(job.ttr_s)} has expired, but the connection that holds the job is still open. The worker "
            "may hang; the job is ready again as soon as it ends."
        )
    else:
        text = (
            f"A worker has job {job.id}, {facts.nth_attempt}: it was {heard}, and may be silent for "
            f"{show_seconds(job.ttr_s)}."
        )
    return Reason("reserved", text, numbers)


def _buried(facts: Facts) -> Reason:
    job, story = facts.record.id, facts.story
    if story is None:
        return Reason("buried", f"Job {job} {UNTOLD}.")
    since = show_seconds(facts.now - story.buried_at)
    text = f"Job {job} has been buried for {since}: {show_story(story)}. See `flask-backend failures --job {job}`."
    return Reason("buried", text, {"buried_at": story.buried_at})


def _expired(facts: Facts) -> Reason:
    job, ago_s = facts.record, facts.now - (facts.expires_at or facts.now)
    after = "after a retry it is" if job.state == "buried" else "it is"
    text = (
        f"Job {job.id} expired {show_seconds(ago_s)} ago: {after} deleted, and not run, as soon as a worker takes it."
    )
    return Reason("expired", text, {"expired_s": round(ago_s, 3)})


def _will_expire(facts: Facts) -> Iterator[Reason]:
    if facts.expires_at is None or facts.cursor is not None:
        return
    job, left_s = facts.record, facts.expires_at - facts.now
    before = ", before it is due" if job.state == "delayed" and left_s < job.time_left_s else ""
    text = f"It expires at {show_time(facts.expires_at)}, in {show_seconds(left_s)}{before}."
    yield Reason("expires", text, {"expires_in_s": round(left_s, 3)})


def _delayed(facts: Facts) -> Reason:
    job = facts.record
    text = f"Job {job.id} is scheduled for {_due(facts)}."
    return Reason("delayed", text, {"due_in_s": job.time_left_s})


def _retry(facts: Facts) -> Reason:
    job = facts.record
    text = f"Job {job.id} has failed {_times(facts.attempt - 1)}; {facts.nth_attempt} is due at {_due(facts)}."
    return Reason("retry", text, {"due_in_s": job.time_left_s})


def _held_up(facts: Facts) -> Iterator[Reason]:
    job, queue = facts.record.id, facts.queue
    if queue.is_paused:
        left = show_seconds(queue.pause_left_s)
        until = "until it is resumed" if queue.is_paused_until_resumed else f"for another {left}"
        resume = f"flask-backend resume {shlex.quote(queue.name)}"
        text = f"Queue {queue.name} is paused {until}, so job {job} waits; `{resume}` ends the pause."
        yield Reason("paused", text, {"pause_left_s": queue.pause_left_s})
    if not queue.watching:
        text = (
            f"No worker watches {queue.name} to take job {job}: start one with "
            f"`flask-backend supervise --queue {shlex.quote(queue.name)}`."
        )
        yield Reason("no-worker", text, {"ready": queue.ready, "workers": 0, "idle": 0})
    if facts.record.state == "ready":
        yield from _limited(facts)


def _limited(facts: Facts) -> Iterator[Reason]:
    limit = facts.limit
    if limit is None or not limit.waiting:
        return
    waits = "1 worker has a job and waits" if limit.waiting == 1 else f"{limit.waiting} workers have a job and wait"
    which = ", perhaps with this one" if facts.record.state == "reserved" else ""
    within = "" if limit.per is None else f" within {show_seconds(limit.per)}"
    text = f"Limit {limit.name}: {limit.used} of {limit.n}{within} are used, and {waits}{which}."
    numbers = {"limit_n": limit.n, "limit_per_s": limit.per, "limit_used": limit.used, "limit_waiting": limit.waiting}
    yield Reason("limited", text, numbers)


def _misfit(facts: Facts) -> Iterator[Reason]:
    if facts.misfit is not None:
        yield Reason(facts.misfit.fault, f"Job {facts.record.id} cannot run: {visible(facts.misfit.why)}.")


def _in_turn(facts: Facts) -> Reason:
    queue = facts.queue
    numbers = {"ready": queue.ready, "workers": queue.watching, "idle": queue.waiting}
    text = (
        f"Job {facts.record.id} is ready and waits for its turn: {count_of(queue.ready, 'job')} of {queue.name} "
        f"{'is' if queue.ready == 1 else 'are'} ready, and of {count_of(queue.watching, 'worker')} "
        f"{queue.waiting or 'none'} {'are' if queue.waiting > 1 else 'is'} idle."
    )
    return Reason("ready" if queue.waiting else "busy", text, numbers)


def _due(facts: Facts) -> str:
    left_s = facts.record.time_left_s
    return f"{show_time(facts.now + left_s)}, in {show_seconds(left_s)}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
