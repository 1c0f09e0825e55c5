"""The dashboard as a server of its own on the loopback interface, for one person.

The browser that opens the link, which works once, gets a cookie. A Host header that is not a loopback name is refused:
another site may resolve its own name to 127.0.0.1, and its pages would have the same origin as ours.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, redirect, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Response as AnyResponse

from flask_backend.extension import Backend

from .blueprint import HEADERS, Dashboard, set_headers

NAME = "flask-backend"
HOSTS = ("127.0.0.1", "::1", "localhost")


class Links:
    """The token of the printed link, which works once, and that of the cookie."""

    def __init__(self, url: str, announce: Callable[[str], None]) -> None:
        """Take the server's URL. ``announce`` is called with each new link."""
        self.cookie = secrets.token_urlsafe(32)
        self._url = url
        self._announce = announce
        self._lock = threading.Lock()
        self._token = ""

    def renew(self) -> None:
        self._token = secrets.token_urlsafe(32)
        self._announce(f"{self._url}/?token={self._token}")

    def use(self, token: str) -> bool:
        """Whether this is the token of the link. Then that link has no further use, and there is another one."""
        with self._lock:
            if not hmac.compare_digest(token.encode(), self._token.encode()):
                return False
            self.renew()
            return True


def make_app(
    backend: Backend, config: Mapping[str, Any], links: Links, user: str | None, *, is_read_only: bool = False
) -> Flask:
    """Return the app of the server: the dashboard of a ``Backend`` with these settings."""
    app = Flask(NAME, static_folder=None, template_folder=None)
    app.config.from_mapping(config, SECRET_KEY=secrets.token_hex())
    backend.init_app(app)

    def may(action: str, _what: Mapping[str, Any]) -> bool:
        return not is_read_only or action.startswith("view")

    app.register_blueprint(Dashboard(may, user=lambda: user), url_prefix="/")
    app.before_request(lambda: _admit(links))
    app.after_request(set_headers)  # also for pages that do not exist
    return app


def _admit(links: Links) -> AnyResponse | None:
    """Refuse a request for another host, or without the cookie; exchange the link's token for the cookie."""
    if _host_of(request.host) not in HOSTS:
        return _refuse(421, f"This server is only at {' and '.join(HOSTS)}: the Host header names another one.")
    # Browsers share cookies among the ports of a host. Behind a forwarded port this is the one that the browser knows.
    name = f"flask_backend_{urlsplit(f'//{request.host}').port or 80}"
    has_cookie = hmac.compare_digest(request.cookies.get(name, "").encode(), links.cookie.encode())
    if (token := request.args.get("token")) is not None and request.method == "GET":
        if not links.use(token) and not has_cookie:  # a reload of the link that this browser has opened
            return _refuse(403, "This link was used already, or is of an earlier run. The terminal shows the next one.")
        response = redirect("/")
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.set_cookie(name, links.cookie, httponly=True, samesite="Strict", path="/")
        return response
    if has_cookie or (request.endpoint or "").endswith(".static"):
        return None
    return _refuse(403, "Open the link that `flask-backend dashboard` shows in its terminal.")


def _host_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _refuse(status: int, text: str) -> Response:
    response = Response(f"{text}\n", status, HEADERS, mimetype="text/plain")
    response.headers["Cache-Control"] = "no-store"
    return response


def make_wsgi_server(listener: socket.socket, app: Flask) -> BaseWSGIServer:
    """Return a server for a listening socket, with a thread for each request."""
    host, port = listener.getsockname()[:2]
    return make_server(host, port, app, threaded=True, request_handler=_Handler, fd=listener.fileno())


class _Handler(WSGIRequestHandler):
    """Logs no requests: their URLs have the tokens of links. A client that sends nothing does not keep its thread."""

    timeout = 30  # seconds: browsers open connections before they need them

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  # Werkzeug's name
        pass
