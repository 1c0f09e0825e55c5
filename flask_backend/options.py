"""How a call is scheduled, apart from its arguments. Pure."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from .durations import MAX_SECONDS, Delay, exact_seconds, whole_seconds
from .errors import OptionError
from .message import show_value

# A session, or False to send at once.
if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

    AfterCommit = Session | scoped_session[Any] | Literal[False]
else:
    AfterCommit = Any

# greenstalk's default, between the priorities that the protocol calls urgent (below 1024) and the last one.
DEFAULT_PRIORITY = 2**16
MAX_PRIORITY = 2**32 - 1  # comes last


@dataclass(frozen=True, slots=True)
class Options:
    """How to put a job. Each option may be unset.

    ``delay``
        When workers may take it: after a number of seconds (rounded up to whole ones) or a ``timedelta``, or from an
        aware ``datetime`` on. By default at once.
    ``priority``
        From 0, which comes first, to 4294967295; by default 65536.
    ``ttr``
        The seconds, at least 1, that its worker may be silent before another one gets it; by default ``BACKEND_TTR``.
    ``expires``
        Until when a worker may start it: for a number of seconds after the call or a ``timedelta``, or until an aware
        ``datetime``, later than ``delay``. After that it is deleted without running. By default it never expires.
    ``after_commit``
        A SQLAlchemy ``Session`` or ``scoped_session``: the call is sent after its outermost transaction has been
        committed, and dropped at a rollback. False sends it at once, whatever ``BACKEND_AFTER_COMMIT`` is.

    Raises :exc:`OptionError`.
    """

    delay: Delay | None = None
    priority: int | None = None
    ttr: float | None = None
    expires: Delay | None = None
    after_commit: AfterCommit | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.delay is not None:
            whole_seconds("delay", self.delay)
        if self.ttr is not None:
            whole_seconds("ttr", self.ttr, least=1)
        priority = self.priority
        is_whole = isinstance(priority, int) and not isinstance(priority, bool)
        if priority is not None and not (is_whole and 0 <= priority <= MAX_PRIORITY):
            raise OptionError(f"priority is {priority!r}; expected a whole number from 0 (first) to {MAX_PRIORITY}")
        if self.expires is not None:
            self._check_expires(self.expires)
        if self.after_commit is not None and self.after_commit is not False:
            _check_session(self.after_commit)

    def _check_expires(self, expires: Delay) -> None:
        delay_s = 0 if self.delay is None else whole_seconds("delay", self.delay)
        if not delay_s < exact_seconds("expires", expires) <= MAX_SECONDS:
            after = f"the delay of {delay_s} s" if delay_s else "now"
            raise OptionError(
                f"expires is {show_value(expires)}; expected a time after {after}, and at most {MAX_SECONDS} seconds: "
                "otherwise the call could not run"
            )

    @property
    def has_due_time(self) -> bool:
        """Whether ``delay`` is a point in time."""
        return isinstance(self.delay, datetime)

    def over(self, defaults: Options) -> Options:
        """Return these options, with the values of ``defaults`` for the ones that are not set."""
        if defaults is DEFAULTS:
            return self
        return Options(
            delay=self.delay if self.delay is not None else defaults.delay,
            priority=self.priority if self.priority is not None else defaults.priority,
            ttr=self.ttr if self.ttr is not None else defaults.ttr,
            expires=self.expires if self.expires is not None else defaults.expires,
            after_commit=self.after_commit if self.after_commit is not None else defaults.after_commit,
        )

    def headers(self) -> dict[str, float]:
        """Return the headers that these options add to the message of a call that is made now."""
        match self.expires:
            case None:
                return {}
            case datetime():
                expires_at = self.expires.timestamp()
            case _:
                expires_at = time.time() + exact_seconds("expires", self.expires)
        return {"expires": math.floor(expires_at * 1000) / 1000}

    def resolve(self, default_ttr_s: int) -> PutOptions:
        """Return the numbers of the put command; a ``datetime`` becomes the seconds from now."""
        return PutOptions(
            priority=DEFAULT_PRIORITY if self.priority is None else self.priority,
            delay_s=0 if self.delay is None else whole_seconds("delay", self.delay),
            ttr_s=default_ttr_s if self.ttr is None else whole_seconds("ttr", self.ttr, least=1),
        )


def _check_session(value: object) -> None:
    """Raise :exc:`OptionError` for anything but a session. SQLAlchemy is imported if there is one."""
    orm: Any = sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(value, orm.Session | orm.scoped_session):
        return
    kind = type(value).__name__
    hint = ": pass the sync_session of an AsyncSession" if "async" in kind.lower() else ""
    raise OptionError(
        f"after_commit is {show_value(value)}; expected a Session or a scoped_session of SQLAlchemy, for example "
        f"db.session, or False to send at once{hint}"
    )


@dataclass(frozen=True, slots=True)
class PutOptions:
    """The three numbers of a put, as the protocol expects them. Seconds are whole."""

    priority: int
    delay_s: int
    ttr_s: int


DEFAULTS = Options()
