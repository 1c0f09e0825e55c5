"""What ``@backend.periodic`` registers, and its form in JSON. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from flask_backend.durations import MAX_SECONDS, whole_seconds
from flask_backend.errors import RegistrationError
from flask_backend.message import encode_call, head_of, show_value
from flask_backend.options import Options

from .when import Cron, Every, whole_or_none

T = TypeVar("T")

CatchUp = Literal["once", "skip"]
CATCH_UP: tuple[CatchUp, ...] = ("once", "skip")
# With catch_up="skip" and no grace, a slot found so many seconds late is missed: the time of a short outage.
SKIP_GRACE_S = 60
# The arguments and the name lie in the token of the queue, which is one job. The server takes 65,535 bytes by default.
MAX_CALL_BYTES = 4096
_UID_CHARS = 32  # as many as our other ids have


@dataclass(frozen=True, slots=True)
class Definition:
    """One periodic task: which call is scheduled when, and the policy for slots that were not scheduled in time.

    ``grace_s`` is how many seconds late a slot may be scheduled; None is any. ``options`` are those of the task's
    decorator, in seconds.
    """

    name: str
    queue: str
    endpoint: str
    when: Cron | Every
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    catch_up: CatchUp = "once"
    overlap: bool = True
    grace_s: int | None = None
    options: Options = field(default_factory=Options)

    @property
    def zone(self) -> str:
        return self.when.zone if isinstance(self.when, Cron) else "UTC"

    def in_zone(self, default: str) -> Definition:
        """Return it with this time zone, unless it has its own."""
        if isinstance(self.when, Cron) and not self.when.zone:
            return replace(self, when=replace(self.when, zone=default))
        return self

    @property
    def most_late_s(self) -> int | None:
        """How many seconds late a slot may still be scheduled; None is any."""
        if self.grace_s is None and self.catch_up == "skip":
            return SKIP_GRACE_S
        return self.grace_s

    def uid(self, slot: int) -> str:
        """Return the id of the call of a slot: the same one, whichever scheduler makes it, and however often."""
        return hashlib.sha256(f"{self.queue}\n{self.name}\n{slot}".encode()).hexdigest()[:_UID_CHARS]

    def headers(self, slot: int | None) -> dict[str, str]:
        """Return the headers of the call of a slot, or of one that a person has asked for."""
        at = {} if slot is None else {"slot": datetime.fromtimestamp(slot, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        return {"schedule": self.name, **at}

    def body(self, uid: str, slot: int | None) -> bytes:
        """Return the body of the call's job, as scheduled now without the app's middleware."""
        headers = {**self.headers(slot), **self.options.headers()}
        return encode_call(head_of(self.endpoint), self.args, self.kwargs, uid, headers)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can carry it, without what has its default."""
        match self.when:
            case Cron():
                when: dict[str, Any] = {"cron": self.when.expression, "zone": self.when.zone}
            case Every():
                when = {"every": self.when.seconds}
        options = {name: value for name in _OPTIONS if (value := getattr(self.options, name)) is not None}
        parts = {
            "args": list(self.args),
            "kwargs": dict(self.kwargs),
            "catch_up": self.catch_up if self.catch_up != "once" else None,
            "serial": not self.overlap,
            "options": options,
        }
        kept = {name: part for name, part in parts.items() if part}
        grace = {} if self.grace_s is None else {"grace": self.grace_s}
        return {"endpoint": self.endpoint, **when, **kept, **grace}

    @classmethod
    def read(cls, name: str, queue: str, value: Mapping[str, Any]) -> Definition:
        """Read what :meth:`as_dict` returned; raise :exc:`ValueError` for anything else."""
        if "cron" in value:
            when: Cron | Every = Cron(_read(value, "cron", str), _read(value, "zone", str))
        else:
            when = Every(_read(value, "every", int, least=1))
        options: dict[str, Any] = _read(value, "options", dict, {})
        numbers: dict[str, Any] = {option: _read(options, option, int, None) for option in _OPTIONS}
        return cls(
            name,
            queue,
            _read(value, "endpoint", str),
            when,
            _read(value, "args", list, []),
            _read(value, "kwargs", dict, {}),
            _one_of(value.get("catch_up", "once"), CATCH_UP),
            not _read(value, "serial", bool, False),
            _read(value, "grace", int, None),
            Options(**numbers),
        )


_OPTIONS = ("delay", "priority", "ttr", "expires")


def plain_options(options: Options) -> Options:
    """Return a task's options in whole seconds; raise :exc:`RegistrationError` for a moment in time."""
    for name in ("delay", "expires"):
        if isinstance(value := getattr(options, name), datetime):
            raise RegistrationError(
                f"the task has {name}={show_value(value)}, one moment for all calls; a periodic task needs seconds"
            )
    return Options(
        delay=None if options.delay is None else whole_seconds("delay", options.delay),
        priority=options.priority,
        ttr=None if options.ttr is None else whole_seconds("ttr", options.ttr, least=1),
        expires=None if options.expires is None else whole_seconds("expires", options.expires, least=1),
        after_commit=False,
    )


def check_policy(catch_up: object, grace: object) -> tuple[CatchUp, int | None]:
    """Return the policy for slots that were not scheduled in time; raise :exc:`RegistrationError`."""
    try:
        policy = _one_of(catch_up, CATCH_UP)
    except ValueError:
        raise RegistrationError(f'catch_up is {show_value(catch_up)}; expected "once" or "skip"') from None
    if grace is None:
        return policy, None
    if (seconds := whole_or_none(grace)) is None:
        raise RegistrationError(f"grace is {show_value(grace)}; expected whole seconds, or a timedelta")
    return policy, seconds


def check_name(name: object) -> str:
    """Return the name of a periodic task; raise :exc:`RegistrationError` if it cannot be one."""
    if not (isinstance(name, str) and name and name.isprintable() and name == name.strip()):
        raise RegistrationError(f'name is {show_value(name)}; expected a name such as name="nightly"')
    return name


def _one_of(value: object, choices: Sequence[T]) -> T:
    for choice in choices:
        if value == choice:
            return choice
    raise ValueError(f"{show_value(value)} is none of {choices}")


_REQUIRED: Any = object()


def _read(value: Mapping[str, Any], key: str, kind: type, default: Any = _REQUIRED, least: int = 0) -> Any:
    """Return a part of a definition, checked: another program may have written it."""
    if key not in value and default is not _REQUIRED:
        return default
    part = value.get(key)
    if type(part) is not kind or (isinstance(part, int) and not least <= part <= MAX_SECONDS):
        raise ValueError(f"{key} is {show_value(part)}")
    return part
