"""Bodies and stories without their secret values: before they are shown, each passes here once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from flask_backend.errors import MessageDecodeError
from flask_backend.functions import parameters_of
from flask_backend.masking import Mask
from flask_backend.message import decode_json
from flask_backend.registry import Handlers
from flask_backend.stories import Story


@dataclass(frozen=True, slots=True)
class Masking:
    """Hides secret values. ``queues`` are those of the app, if it is known, for the names of positional arguments."""

    mask: Mask
    queues: Mapping[str, Handlers] = field(default_factory=dict[str, Handlers])

    def body(self, queue: str, body: bytes) -> bytes:
        """Return the body of a job of a queue; the same bytes if there is nothing to hide."""
        if not self.mask.words:
            return body
        try:
            value = decode_json(body)
        except MessageDecodeError:
            return self._text(body)
        masked = self.mask.value(value)
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            masked |= {"args": self._args(queue, fields)} if isinstance(fields.get("args"), list) else {}
        return body if masked == value else json.dumps(masked, ensure_ascii=False).encode(errors="surrogatepass")

    def _args(self, queue: str, call: Mapping[str, Any]) -> list[Any]:
        handlers, endpoint, args = self.queues.get(queue), call.get("endpoint"), cast("Sequence[Any]", call["args"])
        handler = handlers.tasks.get(endpoint) if handlers is not None and isinstance(endpoint, str) else None
        return self.mask.positional(args, parameters_of(handler.function) if handler is not None else ())

    def _text(self, body: bytes) -> bytes:
        try:
            return self.mask.text(body.decode()).encode()
        except UnicodeDecodeError:
            return body

    def value(self, value: Any) -> Any:
        """Return a value of JSON, such as that of a cursor."""
        return self.mask.value(value)

    def story(self, story: Story) -> Story:
        """Return a story; our workers have hidden the secret values of its call already, those of others may not."""
        return replace(story, call=self.mask.text(story.call)) if story.call else story
