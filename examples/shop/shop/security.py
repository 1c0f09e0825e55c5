"""Who may do what. The shop has customers without accounts, and one owner with a password."""

import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, abort, current_app, request
from werkzeug.datastructures import WWWAuthenticate


def init_app(app: Flask) -> None:
    app.before_request(refuse_other_sites)


def refuse_other_sites() -> None:
    """Refuse forms that another site lets a visitor's browser send. All browsers send one of the two headers."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        is_ours = origin is None or urlsplit(origin).netloc == request.host
    if not is_ours:
        abort(403, "This form was sent from another site.")


def is_owner() -> bool:
    password, given = current_app.config["ADMIN_PASSWORD"], request.authorization
    if not password:
        return current_app.debug
    return given is not None and secrets.compare_digest((given.password or "").encode(), str(password).encode())


def require_owner() -> None:
    if not is_owner():
        abort(401, www_authenticate=WWWAuthenticate("basic", {"realm": "shop"}))


def may(_action: str, _what: Mapping[str, Any]) -> bool:
    """Whether somebody may do something in the dashboard: the owner may do everything."""
    require_owner()
    return True
