"""One request: its rights, its connection to the broker, and what its form says."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from flask import Flask, request
from werkzeug.wrappers import Response

from flask_backend.config import Settings
from flask_backend.errors import QueueNameError, RegistrationError
from flask_backend.extension import EXTENSION_KEY, Backend
from flask_backend.names import check_queue_name, is_internal_tube
from flask_backend.operations.console import Console
from flask_backend.operations.masking import Masking
from flask_backend.operations.recent import StoryReader
from flask_backend.visible import MAX_NAME, visible

from .audit import Record
from .rights import Rights

# How long a page waits for the broker: a person looks at it.
TIMEOUT_S = 2.0
_READERS = f"{EXTENSION_KEY}.dashboard.stories"
_MAX_DIGITS = 19  # of an id


class RefusalError(Exception):
    """A page cannot be shown, or an act is not done: the status, the title and the sentence of the page that says so.

    ``response`` is sent in place of that page.
    """

    def __init__(self, status: int, title: str, text: str, response: Response | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.title = title
        self.text = text
        self.response = response


class Visit:
    """A request to a page of the dashboard. The connection to the broker is opened when it is first used."""

    def __init__(self, page: str, record: Record, app: Flask, rights: Rights) -> None:
        self.page = page  # the name of the page, or of the act
        self.record = record
        self.app = app
        self.rights = rights
        self.now = time.time()
        self._console: Console | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._console:
            self._console.__exit__(kind, error, tb)

    # -- the broker and the app ------------------------------------------------------------------------------

    @property
    def console(self) -> Console:
        if self._console is None:
            self._console = Console(self.settings, Masking(self.settings.mask, self.backend.queues))
        return self._console

    @cached_property
    def backend(self) -> Backend:
        """The app's. Its ``queues`` are those that the app has registered."""
        backend = self.app.extensions.get(EXTENSION_KEY)
        if not isinstance(backend, Backend):
            raise RegistrationError(f"app {self.app.name!r} has no Backend: use Backend(app), or backend.init_app(app)")
        return backend

    @cached_property
    def settings(self) -> Settings:
        settings = self.backend.settings_of(self.app)
        return dataclasses.replace(settings, timeout_s=min(settings.timeout_s, TIMEOUT_S))

    @cached_property
    def address(self) -> str:
        return str(self.settings.broker)

    @cached_property
    def stories(self) -> StoryReader:
        """The reader of the newest stories, which all threads of this process share for one app and broker."""
        readers: dict[str, StoryReader] = self.app.extensions.setdefault(_READERS, {})
        return readers.setdefault(self.address, StoryReader())

    # -- rights ----------------------------------------------------------------------------------------------

    def may(self, action: str, **what: Any) -> bool:
        """Whether the person may do this: only then the control is rendered. Templates have it as ``may``."""
        return self.rights.has(action, what)

    def may_view(self, queue: str) -> bool:
        """Whether the person may view a queue: a page that lists several leaves out the others."""
        return self.may("view", page=self.page, queue=queue)

    def require(self, action: str, what: Mapping[str, Any]) -> None:
        """Raise :exc:`RefusalError` unless the person may do this."""
        answer = self.rights.ask(action, what)
        if answer is not True:
            response = answer if isinstance(answer, Response) else None
            raise RefusalError(403, "Not allowed", self.rights.why_denied(action), response)

    @cached_property
    def may_view_arguments(self) -> bool:
        """Whether arguments may be shown, and the texts of exceptions, which may repeat them."""
        return self.may("view_arguments", **self.what())

    # -- what the request says -------------------------------------------------------------------------------

    @property
    def is_refresh(self) -> bool:
        """Whether the script fetches an open page again."""
        return "fragment" in request.headers.get("Accept", "")

    @property
    def query(self) -> Mapping[str, str]:
        return request.args

    def value(self, name: str) -> str:
        """Return a value of the form, or for a GET of the query; empty without one."""
        return (request.form if request.method == "POST" else request.args).get(name, "")

    def values(self, name: str) -> list[str]:
        """Return all values of the form with this name."""
        return request.form.getlist(name)

    def queue_name(self) -> str:
        """Return the queue that the request names; raise :exc:`RefusalError` if it cannot be one."""
        name = self.value("queue")
        try:
            check_queue_name(name)
        except QueueNameError as error:
            raise RefusalError(404, "No such queue", f"{error}.") from error
        if is_internal_tube(name):
            raise RefusalError(404, "No such queue", f"{visible(name, MAX_NAME)} is for internal use.")
        return name

    def number(self, name: str, default: int | None = None) -> int:
        """Return a whole number that the request names; raise :exc:`RefusalError` if it is not one."""
        text = self.value(name)
        if not text and default is not None:
            return default
        if not _is_number(text):
            raise RefusalError(400, "Bad request", f"{name} is {visible(text, MAX_NAME)!r}; expected a whole number.")
        return int(text)

    def ids(self) -> list[int]:
        """Return the ids of jobs that the form names, as often as ``id`` is in it."""
        texts = request.form.getlist("id")
        if not all(map(_is_number, texts)):
            raise RefusalError(400, "Bad request", "an id of a job is not a whole number.")
        return [int(text) for text in texts]

    def known_ids(self) -> list[int]:
        """Return the ids of jobs that the form names, without other texts."""
        return [int(text) for text in request.form.getlist("id") if _is_number(text)]

    def what(self) -> dict[str, Any]:
        """Return what the request is about, for the question whether the person may do it."""
        what: dict[str, Any] = {name: value for name in ("queue",) if (value := self.value(name))}
        if request.method == "POST" and (ids := self.ids()):
            what["ids"] = tuple(ids)
        if self.value("pid"):
            what["pid"] = self.number("pid")
        return what


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
