"""The pages and the acts of the dashboard, as values: their URLs, views and rights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .visit import Visit


@dataclass(frozen=True, slots=True)
class Page:
    """What a view shows: a template with its values, or ``data`` as JSON, which may be a function that makes it."""

    template: str
    values: Mapping[str, Any]
    data: object = None
    status: int = 200


@dataclass(frozen=True, slots=True)
class Done:
    """What an act has done, in words, and the URL of the page that shows it next, or that page itself.

    ``count`` and ``ids`` are of the jobs that it affected. ``failure`` is the reason if it was not done. The next
    page shows ``notice`` in place of ``what``, if it is set.
    """

    what: str
    then: str | Page
    count: int = 1
    ids: Sequence[int] = ()
    pattern: str | None = None
    failure: str | None = None
    notice: str | None = None


def question(  # noqa: PLR0913  # the parts of the page
    text: str,
    button: str,
    fields: Sequence[tuple[str, object]],
    cancel: str,
    *,
    details: Sequence[str] = (),
    typed: str | None = None,
    command: str | None = None,
) -> Page:
    """Return the page that asks before an act.

    ``fields`` are sent with the answer, ``typed`` must be typed before, ``command`` is the command line that does the
    same.
    """
    values = {
        "text": text,
        "button": button,
        "fields": fields,
        "cancel": cancel,
        "details": details,
        "typed": typed,
        "command": command,
    }
    return Page("question.html", values, {"question": text})


ViewPage = Callable[["Visit"], Page]
ViewAct = Callable[["Visit"], Done]


@dataclass(frozen=True, slots=True)
class PageRoute:
    name: str
    path: str
    json_path: str
    view: ViewPage
    nav: str | None


@dataclass(frozen=True, slots=True)
class ActRoute:
    name: str
    path: str
    action: str
    view: ViewAct
    ask: ViewPage | None


@dataclass(slots=True)
class Pages:
    """The pages and acts of one module."""

    pages: list[PageRoute] = field(default_factory=list[PageRoute])
    acts: list[ActRoute] = field(default_factory=list[ActRoute])

    def page(self, path: str, json_path: str, *, nav: str | None = None) -> Callable[[ViewPage], ViewPage]:
        """Register a page. ``nav`` is its name in the navigation, if it is there."""

        def register(view: ViewPage) -> ViewPage:
            self.pages.append(PageRoute(view.__name__, path, json_path, view, nav))
            return view

        return register

    def act(self, path: str, action: str, *, ask: ViewPage | None = None) -> Callable[[ViewAct], ViewAct]:
        """Register an act, which needs the right to ``action``. ``ask`` is the page of its question."""

        def register(view: ViewAct) -> ViewAct:
            self.acts.append(ActRoute(view.__name__, path, action, view, ask))
            return view

        return register
