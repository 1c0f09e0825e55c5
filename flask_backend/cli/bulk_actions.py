"""Retry or delete many jobs, chosen by ID or by their failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from flask_backend.message import cut
from flask_backend.names import is_internal_tube
from flask_backend.operations.bodies import show_body
from flask_backend.system.exits import ExitCode
from flask_backend.tracebacks import MAX_MESSAGE

from .brokers import broker_option, open_console
from .lookup import find_failures, nothing_buried
from .output import (
    LISTED_QUEUES,
    confirm,
    count_of,
    cut_to_width,
    echo,
    echo_json,
    echo_more,
    json_option,
    terminal_width,
    yes_option,
)
from .parameters import parse_job_id

if TYPE_CHECKING:
    from flask_backend.broker.stats import JobRecord
    from flask_backend.operations.actions import Action, ActionResult, Target
    from flask_backend.operations.console import Console, Failures
    from flask_backend.operations.failures import Pattern

_LISTED_JOBS = 20  # before a question; the rest is only counted


@dataclass(frozen=True, slots=True)
class Request:
    """The chosen jobs, by ID or by queue and pattern, and the options of the action."""

    ids: tuple[int, ...]
    is_all: bool
    queue: str | None
    pattern: Pattern | None
    yes: bool
    as_json: bool
    broker_uri: str | None

    def check(self, verb: str) -> None:
        if bool(self.ids) == self.is_all:
            raise click.UsageError(f"choose the jobs to {verb}: pass their IDs, or --all for all buried jobs")
        if self.ids and (self.queue or self.pattern):
            raise click.UsageError("--queue and --match filter all buried jobs: they go with --all, not with IDs")


def read_pattern(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> Pattern | None:
    if text is None:
        return None

    from flask_backend.operations.failures import Pattern

    if not text.strip("/"):
        raise click.BadParameter(f"{text!r}: expected ENDPOINT, ENDPOINT/EXCEPTION or /EXCEPTION, as hello/ValueError")
    return Pattern(text)


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the parameters of a :class:`Request`."""
    ids = click.argument("ids", metavar="[ID]...", type=parse_job_id, nargs=-1)
    all_ = click.option("--all", "is_all", is_flag=True, help="All buried jobs.")
    queue = click.option("--queue", "-q", help="With --all: only jobs of this queue.")
    match = click.option(
        "--match",
        "pattern",
        callback=read_pattern,
        metavar="PATTERN",
        help="With --all: only failures of ENDPOINT, ENDPOINT/EXCEPTION or /EXCEPTION, such as hello/ValueError, with "
        "shell wildcards. Jobs that were buried without a story never match.",
    )
    return ids(all_(queue(match(yes_option(json_option(broker_option(function)))))))


def run_action(ctx: click.Context, verb: str, request: Request) -> None:
    """Do what ``verb`` says, the value of an :class:`Action`."""
    from flask_backend.operations.actions import Action

    action = Action(verb)
    request.check(action.value)
    with open_console(ctx, request.broker_uri) as console:
        result = _do_to_all(action, request, console) if request.is_all else _do_to_some(action, request, console)
    if request.as_json:
        refused = [{"job": job_id, "reason": reason} for job_id, reason in result.refused.items()]
        echo_json({"broker": console.address, action.past: list(result.done), "refused": refused})
    elif result.done:
        echo(f"{action.past} {count_of(len(result.done), 'job')}")
    for job_id, reason in result.refused.items():
        echo(f"job {job_id} is {reason}", err=True)
    if result.refused:
        ctx.exit(ExitCode.FAILED)


def _do_to_some(action: Action, request: Request, console: Console) -> ActionResult:
    from flask_backend.operations.actions import Target, act_on_jobs

    seen: dict[int, Target] = {}
    if not request.yes:
        jobs = [job for job in console.jobs(request.ids) if job.state != "reserved" and not is_internal_tube(job.queue)]
        if jobs:
            seen = _list_jobs(console, jobs)
            confirm(f"{action.value.capitalize()} {count_of(len(jobs), 'job')}?", yes=False)
    return act_on_jobs(console, action, [seen.get(job_id, Target(job_id)) for job_id in request.ids])


def _list_jobs(console: Console, jobs: Sequence[JobRecord]) -> dict[int, Target]:
    """List the first of these jobs; return them as they were seen."""
    from flask_backend.operations.actions import Target, mark_of

    shown = jobs[:_LISTED_JOBS]
    bodies = console.bodies(job.id for job in shown)
    for job in shown:
        body = console.masking.body(job.queue, bodies.get(job.id, b""))
        line = f"  {job.id}  {job.queue}  {job.state}  {cut(show_body(body), MAX_MESSAGE)}"
        echo(cut_to_width(line, terminal_width()), err=True)
    if len(jobs) > len(shown):
        echo(f"  and {len(jobs) - len(shown):,} more", err=True)
    return {job.id: Target(job.id, job.queue, mark_of(bodies[job.id])) for job in shown if job.id in bodies}


def _do_to_all(action: Action, request: Request, console: Console) -> ActionResult:
    from flask_backend.operations.actions import ActionResult, act_on_failures

    found = find_failures(console, request.queue)
    matching = ""
    if request.pattern is not None:
        found = [chosen for each in found if (chosen := request.pattern.choose(each)).count]
        matching = f" that match {request.pattern.text}"
    if not found:
        nothing = f"no buried jobs{matching}" if matching else nothing_buried(console, request.queue)
        echo(nothing, err=True)
        return ActionResult([], {})
    _confirm_all(action, found, matching, yes=request.yes)
    done = [job_id for each in found for job_id in act_on_failures(console, action, each)]
    if missing := sum(each.count for each in found) - len(done):
        echo(f"skipped {count_of(missing, 'job')}: no longer buried", err=True)
    return ActionResult(done, {})


def _confirm_all(action: Action, found: Sequence[Failures], matching: str, *, yes: bool) -> None:
    if yes:
        return
    where = found[0].queue if len(found) == 1 else f"{len(found)} queues"
    if len(found) > 1:
        for each in found[:LISTED_QUEUES]:
            echo(f"{each.count:>8,}  {each.queue}", err=True)
        echo_more(len(found))
    total = sum(each.count for each in found)
    confirm(f"{action.value.capitalize()} {count_of(total, 'buried job')} of {where}{matching}?", yes=yes)
