"""The scheduler: a process beside the workers that schedules the calls of periodic tasks.

Any number of them, on any hosts, may serve a queue. They wait for its token, and the one that gets it acts. A scheduler
that dies gives the token back within milliseconds, since its connection closes.
"""

from __future__ import annotations

import logging
import math
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

from flask_backend.broker.connection import Connection
from flask_backend.broker.election import election
from flask_backend.broker.pipeline import Pipeline
from flask_backend.broker.wire import ReservedJob
from flask_backend.config import Settings
from flask_backend.errors import BrokerError, JobTooBigError
from flask_backend.names import schedule_tube
from flask_backend.system.exits import ExitCode
from flask_backend.system.loggers import get_logger

from . import wording
from .definition import Definition
from .due import Due, find_due, look_at
from .keeping import (
    TICK_S,
    TTR_S,
    Standing,
    check_size,
    check_standing,
    find_newest,
    is_unfinished,
    put_token,
    read,
    release_token,
    replace_token,
)
from .token import LOOK_EVERY_S, Entry, Release, Token

logger = get_logger("flask_backend.periodic")

# How long before the end of TICK_S, in seconds, the call that takes so long is named in the log.
NAMED_S = 1.0
# How long the token of a queue at which schedulers die lets those of other queues go first, in seconds.
PUT_OFF_S = 1
# How often a scheduler looks whether the token is there, in seconds: no longer does a lost one stop the schedules.
CENSUS_S = 10
# A token that is held for so long, in seconds, is lost with its holder: the server does not always notice.
LOST_S = TTR_S + 15
# How long a holder respects that another connection holds a token too.
UNCLEAR_S = 20.0
# A token that should have been looked at so long ago, in seconds, waits for a clock that was set back.
LATE_S = 2.0
# An answer about the token takes no longer: a holder that waits for a frozen server must not be killed for it.
MAX_TIMEOUT_S = 5.0
# The delay before the next connection, doubled up to the second: less than PROMPT_S, so that no time is left out.
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.2, 5.0

# Schedules the call of a slot with this id, and returns the id of its job.
Fire = Callable[[Definition, int, str], int]


@dataclass(slots=True)
class Watch:
    """What a scheduler knows of the token of one queue. Times are on the monotonic clock."""

    queue: str
    definitions: Sequence[Definition]
    newest: Token | None = None  # the newest one seen: it is put again if the server has lost its memory
    hidden_since: float | None = None  # since when each look has found it held
    unclear_since: float | None = None
    is_too_big: bool = False

    def remember(self, token: Token) -> None:
        if self.newest is None or token.number >= self.newest.number:
            self.newest = token


class Stopped(Exception):  # noqa: N818  # not an error
    """The scheduler was asked to end."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The descriptors that end the scheduler when they are readable: of the signals, and the supervisor's lifeline."""

    fds: Sequence[int]

    def wait(self, timeout_s: float, connection: Connection | None = None) -> bool:
        """Wait until the connection is readable (True) or the time is over (False); raise :exc:`Stopped`."""
        poll = select.poll()
        for fd in self.fds:
            poll.register(fd, select.POLLIN)
        if connection is not None:
            poll.register(connection, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0, math.ceil(timeout_s * 1000)))}
        if ready & set(self.fds):
            raise Stopped
        return bool(ready)


@dataclass(slots=True)
class Scheduler:
    """Schedules what is due in some queues, until it is stopped."""

    settings: Settings
    release: Release
    watches: Mapping[str, Watch]  # by the tube of the token
    fire: Fire
    stop: Stop
    clock: Callable[[], float] = time.time
    _census_at: float = field(default=0.0, init=False)
    _is_away: bool = field(default=False, init=False)
    _put_off: set[int] = field(default_factory=set[int], init=False)  # tokens that let other queues go first, once
    _kicked: list[int] = field(default_factory=list[int], init=False)  # by the census, and not reserved since

    def run(self) -> None:
        """Serve until :exc:`Stopped`, which it does not raise."""
        delay_s = RECONNECT_MIN_S
        while True:
            began = time.monotonic()
            try:
                with self._connected() as connection:
                    self._serve(connection)
            except Stopped:
                return
            except BrokerError as error:
                if not self._is_away:
                    logger.warning(wording.WAITS_FOR_BROKER, error)
                self._is_away = True
            if time.monotonic() - began > RECONNECT_MAX_S:
                delay_s = RECONNECT_MIN_S
            try:
                self.stop.wait(delay_s * random.uniform(0.5, 1))
            except Stopped:
                return
            delay_s = min(2 * delay_s, RECONNECT_MAX_S)

    @contextmanager
    def _connected(self) -> Generator[Connection, None, None]:
        with _limited():
            first, *others = self.watches
            connection = Connection(self.settings.address, self.settings.timeout_s, watch=first)
        try:
            with _limited():
                connection.watch(others)
            yield connection
        finally:
            connection.close()  # the server gives back a token that it holds

    def _serve(self, connection: Connection) -> None:
        self._census_at = time.monotonic()
        self._put_off.clear()
        self._kicked.clear()  # these ids may be of other jobs now
        while True:
            if time.monotonic() >= self._census_at:
                with _limited():
                    for watch in self.watches.values():
                        self.look(connection, watch)
                self._census_at = time.monotonic() + CENSUS_S
                if self._is_away:
                    self._is_away = False
                    logger.warning(wording.CONNECTED_AGAIN)
            job = self._reserve_kicked(connection) or self._reserve(connection)
            while job is not None:
                with _limited():
                    due_at = self.tick(connection, job)
                job = None if due_at is None else self._wait_for(connection, job, due_at)

    def _reserve_kicked(self, connection: Connection) -> ReservedJob | None:
        """Reserve a token that the census has made ready: by its priority it might never come first."""
        while self._kicked:
            with _limited():
                if (job := connection.reserve_job(self._kicked.pop())) is not None:
                    return job
        return None

    def _reserve(self, connection: Connection) -> ReservedJob | None:
        """Wait for a token, at most until the next census."""
        self.stop.wait(0)  # a token that came meanwhile would seem to have been held by a scheduler that died
        pipeline = Pipeline(connection)
        pipeline.reserve(max(0, math.ceil(self._census_at - time.monotonic())))
        deadline = time.monotonic() + CENSUS_S + self.settings.timeout_s
        while pipeline.is_reserving:
            if not self.stop.wait(deadline - time.monotonic(), connection) and time.monotonic() >= deadline:
                connection.close()
                raise BrokerError("no answer to a reserve")
            connection.receive()
        return next(iter(pipeline.take_jobs()), None)

    def _wait_for(self, connection: Connection, job: ReservedJob, due_at: float) -> ReservedJob | None:
        """Wait for the rest of a second, without holding the token; then reserve it, unless another one has."""
        while (left_s := due_at - self.clock()) > 0:
            self.stop.wait(min(left_s, 1.0))
            if left_s > 1.0:  # the clock was set back
                return None
        with _limited():
            return connection.reserve_job(job.id)

    # -- a tick ------------------------------------------------------------------------------------------------

    def tick(self, connection: Connection, job: ReservedJob) -> float | None:
        """Schedule what is due, and replace the token.

        If the next slot is less than a second away, release the token instead, and return when the slot is due.
        """
        found = connection.stats_job([job.id])
        if not found:
            return None
        watch, now = self.watches[found[0].queue], self.clock()
        token = read(job) or self._renewed(watch, now)
        watch.remember(token)
        updated = self._updated(connection, watch, token, now)
        if updated is token and 0 < look_at(token, now) - now < 1:
            release_token(connection, job.id, token, now)
            return look_at(token, now)
        deaths = found[0].reserves - found[0].releases - 1
        if deaths > 1 and len(self.watches) > 1 and job.id not in self._put_off:
            self._put_off.add(job.id)  # what killed two schedulers may kill this one: first the other queues
            release_token(connection, job.id, token, now, PUT_OFF_S)
            return None
        if not self._may_act(connection, watch, job, token):
            return None
        due = find_due(updated, now)
        if deaths > 0:
            logger.warning(wording.DIED_BEFORE, watch.queue)
            # If the app's code around one of them kills us, again and again, the others must have their turn.
            due = iter(random.sample(among := list(due), len(among)))
        entries, failure = self._act_on(connection, due)
        written = updated.next_written(entries)
        watch.remember(written)
        replace_token(connection, job, written, self.clock())
        if failure is not None:
            raise failure
        return None

    def _may_act(self, connection: Connection, watch: Watch, job: ReservedJob, token: Token) -> bool:
        """Whether the held token is the only one. If another connection holds one too, compare again in a moment."""
        standing = check_standing(connection, watch.queue, job, token)
        if standing is not Standing.UNCLEAR:
            watch.unclear_since = None
            return standing is Standing.ONLY
        now = time.monotonic()
        watch.unclear_since = watch.unclear_since or now
        if now - watch.unclear_since > UNCLEAR_S:
            return True
        release_token(connection, job.id, token, self.clock(), random.randint(1, 3))
        return False

    def _act_on(self, connection: Connection, due: Iterable[Due]) -> tuple[list[Entry], BrokerError | None]:
        """Schedule one call; return the changed entries, and the error that ended it, if any.

        The others stay due, and follow when the token is written: so a death repeats one call at most.
        """
        entries: list[Entry] = []
        for each in due:
            try:
                entries.append(self._act_on_one(connection, each))
                if entries[-1].scheduled > each.after.scheduled:
                    break
            except JobTooBigError as error:
                logger.error(wording.REFUSED, each.after.definition.name, error)
                entries.append(each.missed())
            except BrokerError as error:
                return entries, error  # this one stays due too
            except Exception:  # of the app's middleware, or a receiver of its signals: the others are still due
                logger.exception(wording.CODE_RAISED, each.after.definition.name)
                entries.append(each.missed())
        return entries, None

    def _act_on_one(self, connection: Connection, due: Due) -> Entry:
        definition = due.after.definition
        if due.slot is None:
            return due.after
        if not definition.overlap and is_unfinished(connection, due.after):
            logger.info(wording.OVERLAPS, definition.name, due.after.job)
            return due.skipped()
        uid = definition.uid(due.slot)
        with _named_if_killed(definition):
            job_id = self.fire(definition, due.slot, uid)
        return due.scheduled(job_id, uid)

    # -- the census --------------------------------------------------------------------------------------------

    def look(self, connection: Connection, watch: Watch) -> None:
        """Put the token if it is missing, and make it ready if it should be looked at now."""
        [counts] = connection.stats_tube([schedule_tube(watch.queue)])
        found = find_newest(connection, watch.queue)
        now = time.monotonic()
        if found is None:
            watch.hidden_since = (watch.hidden_since or now) if counts.reserved else None
            is_lost = watch.hidden_since is not None and now - watch.hidden_since > LOST_S
            if not counts.reserved or is_lost:
                self._put_again(connection, watch, counts.reserved)
            return
        watch.hidden_since = None
        job, token = found
        if watch.newest is not None and token.number < watch.newest.number and not counts.reserved:
            self._put_again(connection, watch, 0)
            return
        watch.remember(token)
        if self._is_to_be_looked_at(connection, job, token):
            connection.kick_job([job.id])
            self._kicked.append(job.id)

    def _is_to_be_looked_at(self, connection: Connection, job: ReservedJob, token: Token) -> bool:
        """Whether the token waits although it should not: buried, of an earlier release, or for a clock."""
        record = next(iter(connection.stats_job([job.id])), None)
        if record is None or record.state not in ("delayed", "buried"):
            return False
        now = self.clock()
        return (
            record.state == "buried"
            or self.release.is_newer_than(token.release, now)
            or record.time_left_s > LOOK_EVERY_S + 1
            or look_at(token, now) < now - LATE_S
        )

    def _put_again(self, connection: Connection, watch: Watch, held: int) -> None:
        """Put the newest token known, or a new one, if this scheduler is elected and it is still missing."""
        with election(connection, schedule_tube(watch.queue)) as is_elected:
            if not is_elected:
                return
            [counts] = connection.stats_tube([schedule_tube(watch.queue)])
            found = find_newest(connection, watch.queue)
            number = watch.newest.number if watch.newest else 0
            if counts.reserved > held or (found and found[1].number >= number):
                return
            now = self.clock()
            token = self._updated(connection, watch, self._renewed(watch, now), now).next_written()
            if watch.is_too_big:
                return
            put_token(connection, token, now)
            watch.remember(token)

    def _renewed(self, watch: Watch, now: float) -> Token:
        """Return the newest token that is known here, or a new one."""
        if watch.newest is not None:
            logger.warning(wording.PUT_AGAIN, watch.queue)
            return watch.newest
        logger.info(wording.BEGINS, watch.queue)
        return Token(watch.queue).with_release(self.release, watch.definitions, now)

    def _updated(self, connection: Connection, watch: Watch, token: Token, now: float) -> Token:
        """Return the token with the definitions of this release, if it is newer and the server can take it."""
        updated = token.with_release(self.release, watch.definitions, now)
        if updated is token and not watch.is_too_big:
            return token
        try:
            check_size(connection, updated)
        except BrokerError as error:
            if not watch.is_too_big:
                logger.error("%s", error)
            watch.is_too_big = True
            return token
        watch.is_too_big = False
        return updated


def serve(  # noqa: PLR0913  # what it gets from its supervisor, and what it schedules
    settings: Settings,
    release: Release,
    definitions: Mapping[str, Sequence[Definition]],
    fire: Fire,
    accept_signals: Callable[[], None],
    lifeline: int,
) -> int:
    """Schedule the periodic tasks of some queues until TERM, or until the supervisor ends; return the exit code.

    Signals are blocked until ``accept_signals`` is called. ``lifeline`` is a descriptor that is readable when the
    supervisor is gone.
    """
    term_r, term_w = os.pipe()
    os.set_blocking(term_w, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave_it_to_the_pipe)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the app may have set a handler, and the alarm must kill
    signal.set_wakeup_fd(term_w, warn_on_full_buffer=False)
    accept_signals()
    settings = replace(settings, timeout_s=min(settings.timeout_s, MAX_TIMEOUT_S))
    watches = {schedule_tube(queue): Watch(queue, each) for queue, each in definitions.items()}
    Scheduler(settings, release, watches, fire, Stop((term_r, lifeline))).run()
    return ExitCode.OK


def _leave_it_to_the_pipe(_number: int, _frame: FrameType | None) -> None:
    pass


@contextmanager
def _limited() -> Generator[None, None, None]:
    """Have the system kill this process if the block takes too long: it may hold a token, and others wait for that."""
    signal.alarm(TICK_S)
    try:
        yield
    finally:
        signal.alarm(0)


@contextmanager
def _named_if_killed(definition: Definition) -> Generator[None, None, None]:
    """Name the periodic task in the log, with the stack, just before :func:`_limited` kills this process."""
    timer = None
    if left_s := signal.getitimer(signal.ITIMER_REAL)[0]:
        # A thread: the app's code may be in a call that no signal handler of Python interrupts.
        timer = threading.Timer(max(0.0, left_s - NAMED_S), _log_hang, (definition, threading.get_ident()))
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def _log_hang(definition: Definition, thread_id: int) -> None:
    # Documented, in spite of its name.
    frame = sys._current_frames().get(thread_id)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    stack = "".join(["Stack (most recent call last):\n", *traceback.format_stack(frame)]).rstrip()
    args = (definition.name, definition.queue, TICK_S)
    # The stack of another thread than this one, which stack_info=True would take.
    logger.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, wording.HANGS, args, None, sinfo=stack))
