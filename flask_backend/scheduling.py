"""A call while it is being scheduled, and the app's middleware around that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from .job import Job
from .message import OUR_HEADERS
from .middleware import Middleware, compose
from .options import Options

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ScheduledCall:
    """A call while it is being scheduled, for ``@backend.schedule_middleware``.

    ``id`` will be the ``uid`` of its job. Headers that are written to ``headers``, values that JSON can carry, are sent
    with the call, and are in ``current_job.headers`` when it runs; Flask-Backend sets ``id``, ``at`` and ``expires``.
    """

    queue: str
    endpoint: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    id: str
    options: Options
    headers: dict[str, Any] = field(default_factory=dict[str, Any])


class Around(Protocol):
    """Runs a function within the app's middleware; it takes the headers that this has written."""

    def __call__(self, call: ScheduledCall, run: Callable[[dict[str, Any]], T], /) -> T: ...


_Step = tuple[ScheduledCall, Callable[[], Job | None]]


def make_around(middleware: Iterable[Middleware]) -> Around:
    """Compose the middleware around each scheduling."""

    def call_of(step: _Step) -> ScheduledCall:
        return step[0]

    def run_last(step: _Step) -> Job | None:
        return step[1]()

    run_within = compose(middleware, run_last, call_of)

    def around(call: ScheduledCall, run: Callable[[dict[str, Any]], T], /) -> T:
        results: list[T] = []

        def run_and_keep() -> Job | None:
            headers = {name: value for name, value in call.headers.items() if name not in OUR_HEADERS}
            results.append(result := run(headers))
            return result if isinstance(result, Job) else None

        run_within((call, run_and_keep))
        return results[0]

    return around
