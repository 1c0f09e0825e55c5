"""Hide the secret values of calls and messages where they are shown: their names make them secret. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

MASKED = "***"

DEFAULT_WORDS = (
    *("password", "passwd", "passphrase", "secret", "token", "api_key", "private_key", "authorization", "cookie"),
    "credential",
)

# A name and its value in a text: `name="value"` of a call, `"name": "value"` of JSON, `name=value` of a form.
_NAMED = re.compile(
    r"""(?P<name>["']?(?<![\w.-])[\w.-]++["']?)(?P<sign>\s{0,3}[=:]\s{0,3})"""
    r"""(?P<value>"(?:[^"\\]|\\.)*+"?|'(?:[^'\\]|\\.)*+'?|[\[{]|[^\s,;&)\]}\[{]+)""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Mask:
    """The words that make a name secret, see :meth:`hides`."""

    words: Sequence[str] = DEFAULT_WORDS

    def hides(self, name: object) -> bool:
        """Whether values of this name are secret: it contains a word, in any case, with or without _ and -."""
        return isinstance(name, str) and any(_plain(word) in _plain(name) for word in self.words)

    def value(self, value: Any) -> Any:
        """Return a value of JSON without the secret ones in it, at any depth."""
        match value:
            case dict():
                return self.named(cast("Mapping[str, Any]", value))
            case list() | tuple():
                return [self.value(each) for each in cast("Sequence[Any]", value)]
            case _:
                return value

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: MASKED if self.hides(name) else self.value(value) for name, value in values.items()}

    def positional(self, values: Sequence[Any], names: Sequence[str] = ()) -> list[Any]:
        """Return positional arguments without the secret ones; ``names`` are those of the parameters, if known."""
        hidden = [self.hides(name) for name in names[: len(values)]]
        hidden += [False] * (len(values) - len(hidden))
        return [MASKED if is_hidden else self.value(each) for each, is_hidden in zip(values, hidden, strict=True)]

    def text(self, text: str) -> str:
        """Return a text without the secret values that it names, as far as they can be recognized.

        For the calls in stories of earlier versions, and for messages that are neither JSON nor a call. If a secret
        value is an array or an object, the rest of the text is hidden too: it may have no end here.
        """
        shown: list[str] = []
        begin = 0
        for found in _NAMED.finditer(text) if self.words else ():
            if self.hides(found["name"]):
                shown += [text[begin : found.start("value")], MASKED]
                begin = found.end()
                if found["value"][0] in "[{":
                    return "".join(shown)
        return "".join([*shown, text[begin:]])


DEFAULT_MASK = Mask()


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def has_letters(word: object) -> bool:
    """Whether a word can make a name secret: an empty one would hide everything."""
    return isinstance(word, str) and bool(_plain(word).strip())
