"""The blueprint: registers the pages and acts, asks for rights, shows errors, and sets the headers of all answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Response, redirect, request, url_for
from flask.blueprints import BlueprintSetupState
from flask.globals import app_ctx
from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.wrappers import Response as AnyResponse

from flask_backend.errors import BackendError, BrokerConnectionError, ConfigError, RegistrationError
from flask_backend.operations.control import ControlError
from flask_backend.tracebacks import message_of
from flask_backend.visible import MAX_NAME, visible

from . import origin
from .audit import DONE, MAX_IDS, Action, Record
from .pages import ALL
from .rendering import render, render_json
from .rights import Authorize, Rights
from .routing import ActRoute, Done, Page, PageRoute
from .visit import RefusalError, Visit

# All assets are files of this server, so this needs no nonce.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
# What an act has done is shown by the next page: the cookie carries it there, since an app may have no sessions.
_NOTICE = "flask_backend_notice"
_NOTICE_S = 60
_MAX_NOTICE = 500  # characters


class Dashboard(Blueprint):
    """The dashboard of one app's broker, for ``app.register_blueprint``.

    ``authorize(action, what)`` returns whether the person may do an action: ``view``, ``view_arguments``, ``retry``,
    ``delete``, ``cancel``, ``pause``, ``schedule`` or ``control``. ``what`` is a mapping: the ``page``, ``queue``,
    ``ids`` and ``pid`` that it is about, as far as there are any. It may also return a response, such as a redirect to
    the login. Without it, every page answers 403. ``user()`` returns the name of the person, for the record of actions.

    In an app with ``host_matching``, pass ``host=`` to ``register_blueprint``, which otherwise raises
    :exc:`~flask_backend.RegistrationError`.
    """

    def __init__(
        self,
        authorize: Authorize | None = None,
        *,
        user: Callable[[], object] | None = None,
        name: str = "flask_backend",
        **options: Any,
    ) -> None:
        options.setdefault("url_prefix", "/backend")
        super().__init__(
            name,
            __name__,
            static_folder="static",
            static_url_path="/assets",  # an app that mounts the dashboard at / has its own /static
            template_folder="templates",
            **options,
        )
        self.past = Record()
        self._authorize = authorize
        self._user = user
        self.nav = [(each.name, each.nav) for pages in ALL for each in pages.pages if each.nav]
        for pages in ALL:
            for page in pages.pages:
                self._add(page.path, page.name, partial(self._show, page, as_json=False))
                self._add(page.json_path, f"{page.name}_json", partial(self._show, page, as_json=True))
            for act in pages.acts:
                methods = ("GET", "POST") if act.ask else ("POST",)
                self._add(act.path, act.name, partial(self._act, act), methods)
        self.after_request(set_headers)

    def register(self, app: Any, options: dict[str, Any]) -> None:
        if app.url_map.host_matching and not options.get("host"):
            raise RegistrationError(
                f"app {app.name!r} matches hosts: name the dashboard's, as in "
                'app.register_blueprint(Dashboard(...), host="admin.example.com")'
            )
        super().register(app, options)

    def make_setup_state(self, app: Any, options: dict[str, Any], first_registration: bool = False) -> _SetupState:  # noqa: FBT001, FBT002  # Flask's signature
        return _SetupState(self, app, options, first_registration)

    def _add(self, path: str, name: str, view: Callable[[], AnyResponse], methods: tuple[str, ...] = ("GET",)) -> None:
        # Extensions ask for the name of a view: Flask-WTF's, for example. A prefix may have values of the app.
        def named(**_values: object) -> AnyResponse:
            return view()

        named.__name__ = name
        self.add_url_rule(path, name, named, methods=methods)

    # -- pages -----------------------------------------------------------------------------------------------

    def _show(self, route: PageRoute, *, as_json: bool) -> AnyResponse:
        with self._visit(route.name) as visit:
            return self._answer(visit, partial(self._view, visit, route), as_json=as_json)

    def _view(self, visit: Visit, route: PageRoute) -> Page:
        visit.require("view", {"page": route.name, **visit.what()})
        return Page("", {}) if request.method == "HEAD" else route.view(visit)

    def _visit(self, page: str) -> Visit:
        app = app_ctx.app  # the app itself, since current_app is a proxy
        return Visit(page, self.past, app, Rights(self._authorize, app))

    def _answer(self, visit: Visit, view: Callable[[], Page | AnyResponse], *, as_json: bool) -> AnyResponse:
        """Return the answer of a view, or the page of its error."""
        try:
            shown = view()
        except RefusalError as error:
            shown = error.response or _message(error.status, error.title, error.text)
        except BrokerConnectionError as error:
            shown = _message(503, "The broker does not answer", f"{error}.", is_broker_away=True)
        except ControlError as error:
            shown = _message(409, "Not done", f"{error}.")
        except ConfigError as error:  # of memory:// and sync://; init_app refuses all other values
            shown = _message(503, "No broker to show", f"{error}.")
        except BackendError as error:
            shown = _message(500, "The dashboard cannot be shown", f"{error}.")
        if isinstance(shown, AnyResponse):
            return shown
        if request.method == "HEAD":
            return Response(status=shown.status)
        if as_json:
            data = shown.data() if callable(shown.data) else shown.data
            return Response(render_json(data), shown.status, mimetype="application/json")
        return self._render(visit, shown)

    def _render(self, visit: Visit, page: Page) -> Response:
        notice = None if visit.is_refresh else _read_notice()
        values = {
            "may": visit.may,
            "nav": [(name, label) for name, label in self.nav if visit.may("view", page=name)],
            "endpoint": (request.endpoint or "").rpartition(".")[2],
            "app_name": visit.app.name,
            "now": visit.now,
            "notice": notice,
            **page.values,
        }
        response = Response(render(visit.app, page.template, values), page.status, mimetype="text/html")
        if notice:
            response.delete_cookie(_NOTICE, path=url_for(".queues"))
        return response

    # -- acts ------------------------------------------------------------------------------------------------

    def _act(self, route: ActRoute) -> AnyResponse:
        with self._visit(route.name) as visit:
            view = self._do if request.method == "POST" else self._ask
            return self._answer(visit, partial(view, visit, route), as_json=False)

    def _ask(self, visit: Visit, route: ActRoute) -> Page:
        what = visit.what()
        visit.require("view", {"page": route.name, **what})
        visit.require(route.action, what)
        assert route.ask  # noqa: S101  # else there is no GET
        return route.ask(visit)

    def _do(self, visit: Visit, route: ActRoute) -> Page | AnyResponse:
        try:
            _check_origin()
            visit.require(route.action, visit.what())
        except RefusalError as error:
            self._note(visit, route, f"denied: {error.text}", is_remembered=False)
            raise
        try:
            done = route.view(visit)
        except BaseException as error:  # raised again; the record has each act, however it ended
            self._note(visit, route, f"failed: {message_of(error)}")
            raise
        self._note(visit, route, f"failed: {done.failure}" if done.failure else DONE, done)
        if isinstance(done.then, Page):
            return done.then
        response = redirect(done.then, 303)
        _write_notice(response, done)
        return response

    def _note(
        self, visit: Visit, route: ActRoute, outcome: str, done: Done | None = None, *, is_remembered: bool = True
    ) -> None:
        named = {name: visible(request.form.get(name, ""), MAX_NAME) or None for name in ("queue", "pattern")}
        action = Action(
            route.action,
            outcome,
            self._name_user(visit),
            named["queue"],
            visible(done.pattern) if done and done.pattern else named["pattern"],
            done.count if done else 0,
            (done.ids if done else visit.known_ids())[:MAX_IDS],
            done.what if done else route.name.replace("_", " "),
        )
        self.past.note(visit.app, action, is_remembered=is_remembered)

    def _name_user(self, visit: Visit) -> str | None:
        if self._user is None:
            return None
        try:
            user = visit.app.ensure_sync(self._user)()
            return None if user is None else visible(str(user), MAX_NAME)
        except Exception as error:  # the act is recorded in any case
            return f"unknown ({message_of(error)})"


def _check_origin() -> None:
    fetch_site, sender = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if fault := origin.find_fault(fetch_site, sender, request.scheme, request.host):
        raise RefusalError(403, "Refused", f"Nothing was done: {fault}")


class _SetupState(BlueprintSetupState):
    """Gives each rule the host with which the blueprint was registered."""

    def add_url_rule(self, rule: str, endpoint: str | None = None, view_func: Any = None, **options: Any) -> None:
        if host := self.options.get("host"):
            options.setdefault("host", host)
        super().add_url_rule(rule, endpoint, view_func, **options)


def _message(status: int, title: str, text: str, *, is_broker_away: bool = False) -> Page:
    values = {"title": title, "text": text, "is_broker_away": is_broker_away, "reason": HTTPStatus(status).phrase}
    return Page("message.html", values, {"error": text}, status)


def set_headers(response: Response) -> Response:
    """Set the headers that the app, or its Flask-Talisman, has not set."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if not (request.endpoint or "").endswith(".static"):
        response.headers["Cache-Control"] = "no-store"
    return response


def _write_notice(response: AnyResponse, done: Done) -> None:
    text = f"not done: {done.failure}" if done.failure else done.notice or done.what
    value = _serializer().dumps(visible(text, _MAX_NOTICE))
    response.set_cookie(
        _NOTICE,
        value,
        _NOTICE_S,
        path=url_for(".queues"),
        secure=request.is_secure,
        httponly=True,
        samesite="Strict",
    )


def _read_notice() -> str | None:
    try:
        text: object = _serializer().loads(request.cookies.get(_NOTICE, ""), max_age=_NOTICE_S)
    except BadData:  # a cookie of another site below the same domain, or of an earlier key
        return None
    return visible(text, _MAX_NOTICE) if isinstance(text, str) else None


def _serializer() -> URLSafeTimedSerializer:
    """Return what signs the notice. Without a key of the app, another site below the same domain could set one."""
    return URLSafeTimedSerializer(app_ctx.app.secret_key or b"", salt=_NOTICE)
