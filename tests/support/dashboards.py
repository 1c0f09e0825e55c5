"""Apps with the dashboard, and the requests of its pages."""

from __future__ import annotations

from html import unescape
from html.parser import HTMLParser

from flask import Flask

from flask_backend import Backend
from flask_backend.dashboard import Dashboard

# As browsers send it with the POST of a page of the same site.
OWN = {"Sec-Fetch-Site": "same-origin"}


def allow(action, what) -> bool:
    return True


def make_app(uri: str, authorize=allow, *, config=None, register=None, **options) -> Flask:
    """Return an app with a task on the queue "mail", ``app.extensions["welcome"]``, and the dashboard at /backend."""
    app = Flask("shop")
    app.config.update({"BACKEND_CONNECTION_URI": uri, **(config or {})})
    backend = Backend(app)

    @backend.task("mail")
    def welcome(user: str) -> None: ...

    app.register_blueprint(Dashboard(authorize, **options), **(register or {}))
    app.extensions["welcome"] = welcome
    return app


class Form(HTMLParser):
    """The form of a POST on a page, whose URL ends in ``action``: its hidden fields."""

    def __init__(self, page: str, action: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._wanted = action
        self._is_inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        found = dict(attrs)
        if tag == "form":
            path = unescape(found.get("action") or "")
            self._is_inside = path.partition("?")[0].endswith(self._wanted) and self.action is None
            if self._is_inside:
                self.action = path
        elif tag == "input" and self._is_inside and found.get("type") == "hidden":
            self.fields[found["name"]] = found["value"]

    def handle_endtag(self, tag) -> None:
        if tag == "form":
            self._is_inside = False


def answer_form(client, page: str, action: str, **more):
    """Send the form of a page whose URL ends in ``action``; return the answer."""
    form = Form(page, action)
    assert form.action, f"no form for {action} in:\n{page}"
    return client.post(form.action, data={**form.fields, **more}, headers=OWN)
