"""Exceptions whose own code breaks the code that reports them, each under a name."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Evil(BaseException):
    """Raised by their code."""


def fails(*_args: object) -> None:
    raise Evil


def with_class(name: str, **attributes: object) -> BaseException:
    return type(name, (ValueError,), {"__module__": "app", **attributes})("no luck")


class Meta(type):
    __name__ = __module__ = __mro__ = property(fails)
    __instancecheck__ = __subclasscheck__ = fails


class UnfairText(str):
    __slots__ = ()
    __len__ = __getitem__ = __format__ = isprintable = fails


def syntax_error_in_bytes() -> BaseException:
    error = SyntaxError("bad template")
    error.filename, error.lineno, error.offset, error.text = "page.html", 3, 7, b"{{ name }"
    return error


def class_without_module() -> BaseException:
    # As in code that runs with its own globals, of a template for example.
    names = {"__builtins__": {}, "type": type, "ValueError": ValueError}
    error: BaseException = eval('type("Homeless", (ValueError,), {})("no luck")', names)  # noqa: S307  # our own text
    return error


def from_hostile_metaclass() -> BaseException:
    return Meta("FromMeta", (ValueError,), {})("no luck")


def nested_groups(depth: int) -> BaseException:
    error: Exception = ValueError("the innermost")
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


def chain(length: int, attribute: str = "__cause__") -> BaseException:
    first = error = ValueError("the first")
    for number in range(length):
        cause = KeyError(number)
        setattr(error, attribute, cause)
        error = cause
    return first


def circle() -> BaseException:
    error, other = ValueError("one"), ValueError("other")
    error.__cause__, other.__cause__ = other, error
    return error


def with_notes(*notes: object) -> BaseException:
    error = ValueError("no luck")
    error.__notes__ = list(notes)
    return error


def _property(name: str) -> Callable[[], BaseException]:
    return lambda: with_class(f"Bad{name.strip('_').title()}", **{name: property(fails)})


MAKERS: dict[str, Callable[[], BaseException]] = {
    "text is bytes": syntax_error_in_bytes,
    "str raises SystemExit": lambda: with_class("Quits", __str__=lambda _: sys.exit(3)),
    "str raises KeyboardInterrupt": lambda: with_class("Interrupts", __str__=lambda _: _interrupt()),
    "str returns bytes": lambda: with_class("Bytes", __str__=lambda _: b"bytes"),
    "str returns None": lambda: with_class("Nothing", __str__=lambda _: None),
    "str returns an unfair text": lambda: with_class("Unfair", __str__=lambda _: UnfairText("unfair")),
    "str and repr raise": lambda: with_class("Mute", __str__=fails, __repr__=fails),
    "argument raises": lambda: ValueError(with_class("Argument", __str__=fails, __repr__=fails)),
    "no module": class_without_module,
    "module is a number": lambda: with_class("Numbered", __module__=5),
    "metaclass raises": from_hostile_metaclass,
    **{
        f"{name} raises": _property(name)
        for name in (
            *("__traceback__", "__cause__", "__context__", "__suppress_context__", "__notes__"),
            *("__class__", "__dict__", "__module__", "args"),
        )
    },
    "notes are numbers": lambda: with_notes(5, b"x", with_class("Note", __str__=fails)),
    "notes are no list": lambda: with_class("Noted", __notes__=5),
    "groups nested 5,000 deep": lambda: nested_groups(5000),
    "a group of 10,000": lambda: ExceptionGroup("many", [ValueError(number) for number in range(10_000)]),
    "10,000 causes": lambda: chain(10_000),
    "10,000 contexts": lambda: chain(10_000, "__context__"),
    "causes in a circle": circle,
    "a message of 20 MB": lambda: ValueError("x" * 20_000_000),
    "a message of many lines": lambda: ValueError("line\n" * 500_000),
    "surrogates": lambda: ValueError("caf\udce9 \ud800"),
    "controls": lambda: ValueError("\x1b[2J\r\x9b31m\u202e\x00\x07"),
    "a name of 100 KB": lambda: with_class("N" * 100_000),
    "name with controls": lambda: with_class("\x1b[2J\n\u202e"),
    "module with surrogates": lambda: with_class("Odd", __module__="app\ud800"),
}


def _interrupt() -> None:
    raise KeyboardInterrupt
