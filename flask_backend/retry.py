"""The retry policy: what happens to a job after a failure. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, cast

from .decisions import Bury, Discard, RetryLater, TaskDecision
from .durations import MAX_SECONDS
from .errors import ConfigError
from .tracebacks import MAX_MESSAGE, name_of, told
from .visible import visible

# A job that has crashed this many workers is buried.
MAX_CRASHES = 3

Kinds = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts of a job that has just failed, from the broker's own counters.

    ``releases`` counts the earlier failures that were retried; ``buries`` counts the failures that ended a round of
    retries. A worker's death counts as neither: closing the connection gives the job back without counting.
    """

    releases: int
    buries: int

    @property
    def number(self) -> int:
        """The number of this attempt, from 1."""
        return self.releases + self.buries + 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failed task is retried, when, and after which exceptions.

    ``max_retries`` (9)
        The retries after the first attempt; if the last one fails, the job is buried. A kick gives a buried job the
        same number of attempts again. None means no limit.
    ``min_backoff`` (1), ``max_backoff`` (600)
        The seconds before the first retry, and the longest delay: the delay doubles from one to the other.
    ``jitter`` (0.5)
        A random part of the delay, up to this fraction, is added to it, so that jobs that failed together do not
        return together. From 0 to 1, which keeps each delay at least as long as the one before.
    ``on`` (all), ``never`` (empty)
        An exception class or a tuple of classes: a job is buried at the first exception outside ``on`` or in ``never``.

    Raises :exc:`ConfigError` for an invalid value.
    """

    max_retries: int | None = 9
    min_backoff: float = 1
    max_backoff: float = 600
    jitter: float = 0.5
    on: Kinds = BaseException
    never: Kinds = ()

    def __post_init__(self) -> None:
        retries = self.max_retries
        if retries is not None and (not isinstance(retries, int) or isinstance(retries, bool) or retries < 0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"max_retries is {retries!r}; expected a whole number from 0, or None for no limit")
        if not (_is_number(self.min_backoff) and _is_number(self.max_backoff)) or not (
            0 < self.min_backoff <= self.max_backoff <= MAX_SECONDS
        ):
            raise ConfigError(
                f"min_backoff is {self.min_backoff!r} and max_backoff is {self.max_backoff!r}; "
                "expected seconds, more than 0, with the first not above the second"
            )
        if not _is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise ConfigError(f"jitter is {self.jitter!r}; expected a number from 0 to 1")
        for name, kinds in (("on", self.on), ("never", self.never)):
            for kind in kinds if isinstance(kinds, tuple) else (kinds,):
                if not isinstance(kind, type) or not issubclass(kind, BaseException):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise ConfigError(f"{name} has {kind!r}; expected exception classes")

    @classmethod
    def from_setting(cls, key: str, value: object) -> Retry:
        """Read a setting: a :class:`Retry`, or a mapping of its numbers, which environment variables can provide."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is {value!r}; expected a Retry(...) or a mapping such as {{'max_retries': 5}}")
        fields = cast("Mapping[str, Any]", value)
        if unknown := set(fields) - _NUMBERS:
            raise ConfigError(f"{key} has {', '.join(sorted(unknown))}; expected only {', '.join(sorted(_NUMBERS))}")
        return cls(**fields)

    def allowed(self, attempts: Attempts) -> int | None:
        """Return the number of attempts after which the job is buried, if there is a limit."""
        # The server never resets its counters: without the rounds, a kicked job would be buried again at once. Kicks
        # cannot be counted instead, since a delayed job can be kicked too.
        return None if self.max_retries is None else (self.max_retries + 1) * (attempts.buries + 1)

    def allows_another(self, attempts: Attempts) -> bool:
        allowed = self.allowed(attempts)
        return allowed is None or attempts.number < allowed

    def covers(self, error: BaseException) -> bool | None:
        """Whether this error is retried; None if the check runs code of one of the classes and that code raises."""
        try:
            return isinstance(error, self.on) and not isinstance(error, self.never)
        except BaseException:  # raised by a metaclass or a __class__ property; SystemExit too
            return None

    def backoff_s(self, attempts: Attempts, random: Callable[[], float]) -> int:
        """Return the delay before the next attempt, in whole seconds; ``random`` returns numbers from 0 to 1."""
        # The exponent is bounded only to keep the power small. The delay is rounded up: the protocol takes whole
        # seconds, and a release without delay goes to the head of its queue.
        nominal = min(self.max_backoff, self.min_backoff * 2.0 ** min(attempts.number - 1, 40))
        return math.ceil(min(self.max_backoff, nominal * (1 + self.jitter * random())))


_NUMBERS = {"max_retries", "min_backoff", "max_backoff", "jitter"}


DEFAULT_RETRY = Retry()


@dataclass(frozen=True, slots=True)
class ReleaseJob:
    """Retry the job after ``delay_s`` whole seconds."""

    delay_s: int


@dataclass(frozen=True, slots=True)
class BuryJob:
    """Bury the job, for a person to look at."""

    reason: str


@dataclass(frozen=True, slots=True)
class DiscardJob:
    """Delete the job, as its task requested."""

    reason: str


def after_failure(
    retry: Retry, attempts: Attempts, error: BaseException, random: Callable[[], float]
) -> ReleaseJob | BuryJob | DiscardJob:
    """Return what to do with a job whose task raised ``error``."""
    kind = type(error)  # not isinstance, which also reads the exception's __class__: it may be a property that raises
    delay_s: int | None = None
    if issubclass(kind, Discard):
        return DiscardJob(reason_of(error))
    if issubclass(kind, Bury):
        return BuryJob(reason_of(error))
    if issubclass(kind, RetryLater):
        delay_s = _delay_of(error)
    elif not issubclass(kind, TaskDecision) and (is_covered := retry.covers(error)) is not True:
        name = name_of(error).rpartition(".")[2]
        return BuryJob(
            f"{name} is not retried" if is_covered is False else f"{name} cannot be checked against its policy"
        )
    if not retry.allows_another(attempts):
        return BuryJob(f"failed {_times(attempts.number)}")
    return ReleaseJob(retry.backoff_s(attempts, random) if delay_s is None else delay_s)


def reason_of(decision: BaseException) -> str:
    """Return the reason of a task's decision, in one line. The reason may be any object."""
    reason = told(lambda: "" if (given := _reason(decision)) is None else str(given), "(its str() fails)")
    return visible(reason, MAX_MESSAGE)


_reason, _delay_s = attrgetter("reason"), attrgetter("delay_s")


def _delay_of(decision: BaseException) -> int | None:
    """Return the delay that a task asks for, if it is one that the broker accepts."""
    try:
        delay_s = _delay_s(decision)
    except BaseException:  # a property of a subclass
        return None
    return delay_s if type(delay_s) is int and 1 <= delay_s <= MAX_SECONDS else None


def after_crash(retry: Retry, attempts: Attempts, crashes: int, random: Callable[[], float]) -> ReleaseJob | BuryJob:
    """Return what to do with a job that has crashed its worker ``crashes`` times: below the limit it is retried."""
    if crashes >= MAX_CRASHES:
        return BuryJob(f"it has crashed its worker {_times(crashes)}")
    if not retry.allows_another(attempts):
        return BuryJob(f"failed {_times(attempts.number)}")
    return ReleaseJob(retry.backoff_s(attempts, random))


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
