"""The commands for failures: show why jobs are buried, and retry or delete them."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from flask_backend.cli.bodies import show_body
from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.output import (
    Column,
    confirm,
    count_of,
    cut_to_width,
    echo,
    echo_json,
    echo_table,
    json_option,
    show_seconds,
    show_time,
    terminal_width,
    yes_option,
)
from flask_backend.cli.parameters import parse_job_id
from flask_backend.message import END_OF_DATES, cut, scheduled_at
from flask_backend.names import is_failures_tube
from flask_backend.system.exits import ExitCode
from flask_backend.tracebacks import MAX_MESSAGE, MAX_TRACEBACK
from flask_backend.visible import MAX_NAME, visible, visible_lines

from .jobs import JobGoneError
from .queues import no_such_queue

if TYPE_CHECKING:
    from flask_backend.broker.stats import JobRecord
    from flask_backend.operations.console import ActionResult, Console, Failures
    from flask_backend.operations.failures import FailureGroup, Pattern
    from flask_backend.stories import Story

_LABEL = 11  # columns of a line's label
_LISTED_JOBS = _LISTED_QUEUES = 20  # before a question; the rest is only counted


# -- failures --------------------------------------------------------------------------------------------------


@click.command()
@click.argument("queue", required=False)
@click.option("--job", "job_id", type=parse_job_id, metavar="ID", help="Show only the story of this job.")
@json_option
@broker_option
@click.pass_context
def failures(
    ctx: click.Context, queue: str | None, job_id: int | None, broker_uri: str | None, *, as_json: bool
) -> None:
    """Show why jobs are buried.

    Failures are counted by queue, endpoint and exception, or by what killed the worker; the newest one is shown in
    full. Without QUEUE, all queues are shown. Jobs that another program has buried have no story and are only counted.
    """
    if job_id is not None:
        if queue is not None:
            raise click.UsageError("QUEUE and --job exclude each other: an ID is enough")
        with open_console(ctx, broker_uri) as console:
            note = _find_story(console, job_id)
        if as_json:
            echo_json({"broker": console.address, **asdict(note)})
        else:
            _echo_story(note)
            _echo_next_steps(ctx, console.address, note.job)
        return
    with open_console(ctx, broker_uri) as console:
        found = _find_failures(console, queue)
        if not found:
            echo(_nothing_buried(console, queue), err=True)
    if as_json:
        echo_json(_as_dicts(console.address, found))
    elif found:
        _show_failures(ctx, console.address, found)


def _show_failures(ctx: click.Context, address: str, found: Sequence[Failures]) -> None:
    from flask_backend.operations.failures import group

    groups = group(found)
    _echo_groups(groups, found)
    if groups:
        echo()
        _echo_story(groups[0].newest)
        _echo_next_steps(ctx, address, groups[0].newest.job)
    with_untold = [each for each in found if each.untold]
    for each in with_untold[:_LISTED_QUEUES]:
        echo(
            f"\nburied in {each.queue} without a story: {each.untold:,}; to see them:\n"
            f"  {_command(ctx, address, f'jobs {each.queue} --state buried')}",
            err=True,
        )
    _echo_more(len(with_untold))


def _echo_more(queues: int) -> None:
    """Print how many queues are not listed, if any."""
    if queues > _LISTED_QUEUES:
        echo(f"and {queues - _LISTED_QUEUES:,} more queues", err=True)


def _find_failures(console: Console, queue: str | None) -> list[Failures]:
    if queue is None:
        return console.all_failures()
    found = console.failures(queue)
    return [found] if found.count else []


def _nothing_buried(console: Console, queue: str | None) -> str:
    if queue is None:
        return f"no buried jobs at {console.address}"
    if console.queue(queue) is None:
        return f"no buried jobs in {queue}: {no_such_queue(console, queue)}"
    return f"no buried jobs in {queue}"


def _find_story(console: Console, job_id: int) -> Story:
    from flask_backend.cli.explanation import UNTOLD

    job = console.job(job_id)
    if job is None:
        raise JobGoneError(job_id)
    if job.state != "buried":
        raise click.ClickException(f"job {job_id} of {job.queue} is {job.state}: only buried jobs have a story")
    for story in console.failures(job.queue).stories:
        if story.note.job == job_id:
            return story.note
    raise click.ClickException(f"job {job_id} of {job.queue} {UNTOLD}")


def _as_dicts(address: str, found: Sequence[Failures]) -> list[dict[str, Any]]:
    from flask_backend.operations.failures import group

    told = [(each.queue, each.endpoint, each.kind, len(each.stories), each.stories) for each in group(found)]
    untold = [(each.queue, None, None, each.untold, ()) for each in found if each.untold]
    return [
        {
            "broker": address,
            "queue": queue,
            "endpoint": endpoint,
            "kind": kind,
            "count": count,
            "notes": [asdict(story.note) for story in stories],
        }
        for queue, endpoint, kind, count, stories in (*told, *untold)
    ]


def _echo_groups(groups: Sequence[FailureGroup], found: Sequence[Failures]) -> None:
    columns = [
        *(Column("queue"), Column("endpoint"), Column("exception", least=30)),
        *(Column(title, is_number=True) for title in ("count", "last", "newest")),
        Column("message", least=20),
    ]
    now = time.time()
    rows = [
        [
            group.queue,
            visible(group.endpoint or "-", MAX_NAME),
            visible(group.kind, MAX_NAME),
            str(len(group.stories)),
            f"{show_seconds(now - group.newest.buried_at)} ago",
            str(group.newest.job),
            visible(group.newest.message or "-", MAX_MESSAGE),
        ]
        for group in groups
    ]
    untold = [
        [each.queue, "-", "buried without a story", str(each.untold), "-", "-", "-"] for each in found if each.untold
    ]
    echo_table(columns, rows + untold)


# -- a story ---------------------------------------------------------------------------------------------------


def _echo_story(note: Story) -> None:
    """Print all fields of a note."""
    echo(f"job {note.job} of {note.queue}", bold=True)
    room = max(_LABEL + _LABEL, terminal_width()) - _LABEL
    for name, value in _story_fields(note):
        lines = textwrap.wrap(visible(value, MAX_MESSAGE), room, break_on_hyphens=False) or [""]
        for label, line in zip([f"{name}:", *[""] * (len(lines) - 1)], lines, strict=True):
            echo(f"{label:<{_LABEL}}{line}")
    if note.traceback:
        echo()
        echo(visible_lines(note.traceback, MAX_TRACEBACK).expandtabs())


def _story_fields(note: Story) -> Iterator[tuple[str, str]]:
    yield "reason", note.reason
    if note.call or note.endpoint:
        yield "call", note.call or f"{note.endpoint}(…)"  # among many stories, only the first are kept whole
    if note.exception:
        yield "exception", note.exception + (f": {note.message}" if note.message else "")
    elif note.message:
        yield "died", note.message
    if note.attempts is not None:
        yield "attempts", str(note.attempts) + (f" of {note.allowed}" if note.allowed is not None else "")
    if (at := scheduled_at({"at": note.scheduled_at})) is not None:
        yield "scheduled", _show_moment(at)
    yield "buried", _show_moment(note.buried_at)
    if note.ran_s is not None and 0 <= note.ran_s < END_OF_DATES:
        yield "ran", f"{note.ran_s:.3f} s" if note.ran_s < 1 else show_seconds(note.ran_s)
    worker = note.death.get("worker_pid") if note.death else note.pid  # another process reports a death
    yield "worker", f"pid {worker} on {note.host}"


def _show_moment(at: float) -> str:
    return f"{show_time(at)}, {show_seconds(time.time() - at)} ago"


def _echo_next_steps(ctx: click.Context, address: str, job_id: int) -> None:
    echo(
        f"\nrun it again:  {_command(ctx, address, f'retry {job_id}')}\n"
        f"delete it:     {_command(ctx, address, f'delete {job_id}')}",
        err=True,
    )


def _command(ctx: click.Context, address: str, command: str) -> str:
    """Return a command to type here, with --broker if the command line named the broker or the app."""
    sources = (ctx.get_parameter_source("broker_uri"), ctx.find_root().get_parameter_source("app"))
    told = ParameterSource.COMMANDLINE in sources
    prefix = ctx.parent.command_path if ctx.parent else "flask-backend"
    return f"{prefix} {command}" + (f" --broker {address}" if told else "")


# -- retry, delete ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BulkAction:
    """An action on jobs: its words and its functions."""

    verb: str
    past: str
    to_jobs: Callable[[Console, Iterable[int]], ActionResult]
    to_failures: Callable[[Console, Failures], list[int]]


_RETRY = BulkAction(
    verb="retry",
    past="retried",
    to_jobs=lambda console, ids: console.retry_jobs(ids),
    to_failures=lambda console, failures: console.retry_failures(failures),
)
_DELETE = BulkAction(
    verb="delete",
    past="deleted",
    to_jobs=lambda console, ids: console.delete_jobs(ids),
    to_failures=lambda console, failures: console.delete_failures(failures),
)


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
    from flask_backend.operations.failures import Pattern

    if text is None:
        return None
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


@click.command()
@request_options
@click.pass_context
def retry(ctx: click.Context, /, **options: Any) -> None:
    """Run buried or delayed jobs again, now, after confirmation.

    Choose them by ID, or all buried ones with --all. Each is kicked, as Beanstalkd calls it, and is ready at once; a
    buried job gets its full number of attempts again. Exit code 1 if one of the IDs could not be retried.
    """
    _run_action(ctx, _RETRY, Request(**options))


@click.command()
@request_options
@click.pass_context
def delete(ctx: click.Context, /, **options: Any) -> None:
    """Delete jobs, after confirmation.

    Choose them by ID, in any state but reserved, or all buried ones with --all. This cannot be undone. Exit code 1 if
    one of the IDs could not be deleted.
    """
    _run_action(ctx, _DELETE, Request(**options))


def _run_action(ctx: click.Context, action: BulkAction, request: Request) -> None:
    request.check(action.verb)
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


def _do_to_some(action: BulkAction, request: Request, console: Console) -> ActionResult:
    if not request.yes:
        jobs = [job for job in console.jobs(request.ids) if job.state != "reserved" and not is_failures_tube(job.queue)]
        if jobs:
            _list_jobs(console, jobs)
            confirm(f"{action.verb.capitalize()} {count_of(len(jobs), 'job')}?", yes=False)
    return action.to_jobs(console, request.ids)


def _list_jobs(console: Console, jobs: Sequence[JobRecord]) -> None:
    shown = jobs[:_LISTED_JOBS]
    bodies = console.bodies(job.id for job in shown)
    for job in shown:
        line = f"  {job.id}  {job.queue}  {job.state}  {cut(show_body(bodies.get(job.id, b'')), MAX_MESSAGE)}"
        echo(cut_to_width(line, terminal_width()), err=True)
    if len(jobs) > len(shown):
        echo(f"  and {len(jobs) - len(shown):,} more", err=True)


def _do_to_all(action: BulkAction, request: Request, console: Console) -> ActionResult:
    from flask_backend.operations.console import ActionResult

    found = _find_failures(console, request.queue)
    matching = ""
    if request.pattern is not None:
        found = [chosen for each in found if (chosen := request.pattern.choose(each)).count]
        matching = f" that match {request.pattern.text}"
    if not found:
        nothing = f"no buried jobs{matching}" if matching else _nothing_buried(console, request.queue)
        echo(nothing, err=True)
        return ActionResult([], {})
    _confirm_all(action, found, matching, yes=request.yes)
    done = [job_id for each in found for job_id in action.to_failures(console, each)]
    if missing := sum(each.count for each in found) - len(done):
        echo(f"skipped {count_of(missing, 'job')}: no longer buried", err=True)
    return ActionResult(done, {})


def _confirm_all(action: BulkAction, found: Sequence[Failures], matching: str, *, yes: bool) -> None:
    if yes:
        return
    where = found[0].queue if len(found) == 1 else f"{len(found)} queues"
    if len(found) > 1:
        for each in found[:_LISTED_QUEUES]:
            echo(f"{each.count:>8,}  {each.queue}", err=True)
        _echo_more(len(found))
    total = sum(each.count for each in found)
    confirm(f"{action.verb.capitalize()} {count_of(total, 'buried job')} of {where}{matching}?", yes=yes)
