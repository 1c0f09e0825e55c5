"""The checks of ``@backend.periodic``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from flask_backend.errors import RegistrationError
from flask_backend.message import show_value
from flask_backend.options import Options
from flask_backend.zones import check_zone

from .definition import MAX_CALL_BYTES, CatchUp, Definition, check_name, check_policy, plain_options
from .when import Cron, Every


@dataclass(frozen=True, slots=True)
class Plan:
    """The arguments of ``@backend.periodic``, checked. An expression without a zone has that of the app."""

    when: Cron | Every
    catch_up: CatchUp
    overlap: bool
    grace_s: int | None
    name: str | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @classmethod
    def check(  # noqa: PLR0913  # those of the decorator
        cls,
        expression: object,
        every: object,
        timezone: object,
        catch_up: object,
        overlap: object,
        grace: object,
        name: object,
        args: object,
        kwargs: object,
    ) -> Plan:
        """Return the plan; raise :exc:`RegistrationError` for an argument that is wrong."""
        if callable(expression):
            raise RegistrationError(
                "@backend.periodic has no parentheses, and would not know when the task is due: write "
                '@backend.periodic("*/5 * * * *") or @backend.periodic(every=300)'
            )
        if (expression is None) == (every is None):
            raise RegistrationError(
                "@backend.periodic needs either a cron expression or every=: write "
                '@backend.periodic("*/5 * * * *") or @backend.periodic(every=300)'
            )
        policy, grace_s = check_policy(catch_up, grace)
        if not isinstance(overlap, bool):
            raise RegistrationError(f"overlap is {show_value(overlap)}; expected True or False")
        return cls(
            _when(expression, every, timezone),
            policy,
            overlap,
            grace_s,
            None if name is None else check_name(name),
            _check_args(args),
            _check_kwargs(kwargs),
        )

    def define(self, queue: str, endpoint: str, options: Options) -> Definition:
        """Return the definition for a task with these options of its decorator."""
        name = self.name if self.name is not None else check_name(endpoint)
        definition = Definition(
            name,
            queue,
            endpoint,
            self.when,
            self.args,
            self.kwargs,
            self.catch_up,
            self.overlap,
            self.grace_s,
            plain_options(options),
        )
        if (size := len(definition.body("", 0))) > MAX_CALL_BYTES:
            raise RegistrationError(
                f"the periodic task {name[:60]!r} has a call of {size} bytes, and at most {MAX_CALL_BYTES} are "
                "allowed: pass a key, for example a row's id"
            )
        return definition


def _when(expression: object, every: object, timezone: object) -> Cron | Every:
    if every is not None:
        if timezone is not None:
            raise RegistrationError("every= counts from the epoch, and takes no timezone")
        return Every.of(every)
    try:
        zone = None if timezone is None else check_zone(timezone)
    except ValueError as error:
        raise RegistrationError(f"timezone is {error}") from None
    cron = Cron.of(expression, zone or "UTC")
    return cron if zone else Cron(cron.expression, "")


def _check_args(args: object) -> Sequence[Any]:
    if not isinstance(args, list | tuple):
        raise RegistrationError(f"args is {show_value(args)}; expected a list or a tuple of arguments")
    return tuple(cast("Sequence[Any]", args))


def _check_kwargs(kwargs: object) -> Mapping[str, Any]:
    if kwargs is None:
        return {}
    if not isinstance(kwargs, dict):
        raise RegistrationError(f"kwargs is {show_value(kwargs)}; expected a dict of arguments by name")
    return dict(cast("Mapping[str, Any]", kwargs))
