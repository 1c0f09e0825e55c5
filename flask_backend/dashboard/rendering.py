"""Render the templates in an environment of their own: text is escaped, also if the app has switched that off."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Flask, request
from flask.templating import Environment
from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from flask_backend.extension import EXTENSION_KEY
from flask_backend.quantities import count_of, show_duration, show_seconds, show_size
from flask_backend.visible import MAX_NAME, json_visible, visible, visible_lines

FOLDER = "flask_backend"
_ENVIRONMENT = f"{EXTENSION_KEY}.dashboard"
# Characters of a text of others on one page.
MAX_TEXT = 1 << 16
# Bytes of a body that is parsed for a row of a list, which is the most that Beanstalkd takes unless its option -z says
# otherwise, and for the page of one job. A body that is not parsed cannot be masked, so nothing of it is shown.
LISTED_BYTES, PARSED_BYTES = 1 << 16, 1 << 20
_TENFOLD = 10  # from here on a rate has no decimals


def render(app: Flask, template: str, values: Mapping[str, Any]) -> str:
    """Render a template with its values, and those of the app's context processors."""
    environment = app.extensions.get(_ENVIRONMENT)
    if environment is None:
        environment = app.extensions.setdefault(_ENVIRONMENT, _make_environment(app))
    context: dict[str, Any] = {}
    for name in (None, *reversed(request.blueprints)):
        for processor in app.template_context_processors.get(name, ()):
            context.update(app.ensure_sync(processor)())
    page: str = environment.get_template(f"{FOLDER}/{template}").render({**context, **values})
    return page


def render_json(data: object) -> str:
    return json_visible(json.dumps(data, indent=2, ensure_ascii=False)) + "\n"


def _make_environment(app: Flask) -> Environment:
    """Return an environment with the globals, filters and templates of the app, and Jinja's usual syntax."""
    own = app.jinja_env
    environment = Environment(
        app, autoescape=True, undefined=own.undefined, trim_blocks=True, lstrip_blocks=True, auto_reload=own.auto_reload
    )
    environment.globals = own.globals
    # The app may have replaced one of Jinja's.
    filters: dict[str, Callable[..., Any]] = {**own.filters, **FILTERS, **_FILTERS}
    environment.filters = filters
    environment.tests = {**own.tests, **TESTS}
    return environment


def show_large(body: bytes) -> str:
    """Return what is shown of a body that is not parsed."""
    return f"{len(body):,} bytes, too large to show here"


def show_rate(rate: float) -> str:
    return f"{rate:.1f}" if 0 < rate < _TENFOLD else f"{rate:.0f}"


def _shown(text: object, limit: int = MAX_NAME) -> str:
    return visible(str(text), limit)


def _shown_lines(text: object, limit: int = MAX_TEXT) -> str:
    return visible_lines(str(text), limit)


def _number(number: int) -> str:
    return f"{number:,}"


def _iso(at: float) -> str:
    return _moment(at).strftime("%Y-%m-%dT%H:%M:%SZ")


def _utc(at: float) -> str:
    return _moment(at).strftime("%Y-%m-%d %H:%M:%S UTC")


def _moment(at: float) -> datetime:
    """Return a time; a forged one that no calendar has becomes the epoch."""
    try:
        return datetime.fromtimestamp(at, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


_FILTERS: dict[str, Callable[..., Any]] = {
    "count_of": count_of,
    "duration": show_duration,
    "iso": _iso,
    "number": _number,
    "rate": show_rate,
    "seconds": show_seconds,
    "shown": _shown,
    "shown_lines": _shown_lines,
    "size": show_size,
    "utc": _utc,
}
