"""The rights of a person: the app decides, and without its decision each action is denied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from flask_backend.functions import shown_name
from flask_backend.system.loggers import get_logger
from flask_backend.tracebacks import log_failure

logger = get_logger("flask_backend.dashboard")

ACTIONS = ("view", "view_arguments", "retry", "delete", "cancel", "pause", "schedule", "control")

CLOSED = (
    "The dashboard is closed until the app decides who may see it. Pass a function: "
    "`Dashboard(authorize=may)`, with `def may(action, what): return current_user.is_authenticated`, for example."
)
# Takes one of the actions, and its facts: the page, or the queue, the ids and the pid of an act. Returns True,
# False, or a response to send in place of the refusal, such as a redirect to the login.
Authorize = Callable[[str, Mapping[str, Any]], bool | Response]


class Rights:
    """The rights of one request. Each question is asked once."""

    def __init__(self, authorize: Authorize | None, app: Flask) -> None:
        self._authorize = authorize
        self._app = app
        self._answers: dict[object, bool | Response] = {}

    def why_denied(self, action: str) -> str:
        return CLOSED if self._authorize is None else f"You may not {action.replace('_', ' ')} here."

    def has(self, action: str, what: Mapping[str, Any]) -> bool:
        return self.ask(action, what) is True

    def ask(self, action: str, what: Mapping[str, Any]) -> bool | Response:
        """Return True, False, or the response to send in place of the refusal."""
        if action not in ACTIONS:
            raise ValueError(f"{action!r} is not one of {', '.join(ACTIONS)}")
        key = action, tuple(sorted(what.items()))
        if key not in self._answers:
            self._answers[key] = self._ask(action, what)
        return self._answers[key]

    def _ask(self, action: str, what: Mapping[str, Any]) -> bool | Response:
        if self._authorize is None:
            return False
        try:
            answer: object = self._app.ensure_sync(self._authorize)(action, dict(what))
        except HTTPException as error:  # such as those of abort(401)
            return error.get_response()
        except Exception as error:  # an error is not a permission
            log_failure(logger, logging.ERROR, "authorize of the dashboard failed: %s is denied", action, error=error)
            return False
        if answer is None:
            return False
        if isinstance(answer, bool | Response):
            return answer
        logger.error(
            "authorize of the dashboard, %s, returned a value of type %s: %s is denied; expected True, False or a "
            "response",
            shown_name(self._authorize),
            type(answer).__name__,
            action,
        )
        return False
