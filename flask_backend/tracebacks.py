"""An exception as text: its name, message and traceback, each of limited length. Formatting one cannot fail.

The code of an exception may do anything. Its text may be bytes, its class may lack a module, and its ``__str__`` or a
property may raise even SystemExit. If an exception cannot be formatted in full, the text is abridged.
"""

from __future__ import annotations

import linecache
import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .visible import MAX_NAME, visible, visible_lines

MAX_MESSAGE = 1000  # characters
# Characters of a traceback in a log: enough for a long chain of causes.
MAX_TRACEBACK = 20_000

# An exception that exceeds one of these, with its causes and members, gets an abridged traceback.
_MAX_ERRORS = 50
_MAX_FRAMES = 2000
_MAX_LONG_MESSAGE = MAX_TRACEBACK // 2
_SHORT_FRAMES = 20
_SHORT_ERRORS = 5

_PACKAGE = Path(__file__).parent

# The attributes as Python itself stores them: a class or metaclass may redefine each of these names.
_NAME, _MODULE = vars(type)["__qualname__"].__get__, vars(type)["__module__"].__get__
_TRACEBACK = vars(BaseException)["__traceback__"].__get__
_CAUSE, _CONTEXT = vars(BaseException)["__cause__"].__get__, vars(BaseException)["__context__"].__get__
_MEMBERS = vars(BaseExceptionGroup)["exceptions"].__get__


def told(tell: Callable[[], Any], otherwise: str) -> str:
    """Return the string that ``tell`` returns; ``otherwise`` if it returns another type or raises an exception."""
    try:
        return str.__str__(tell())
    except BaseException:  # SystemExit too: this runs code of others
        return otherwise


def name_of(error: BaseException) -> str:
    """Return the name of an exception's class, with its module unless it is built in or ours."""
    kind = type(error)
    name, module = told(lambda: _NAME(kind), "an exception"), told(lambda: _MODULE(kind), "")
    is_known = module in ("", "builtins") or module.startswith("flask_backend.")
    return visible(name if is_known else f"{module}.{name}", MAX_NAME)


def message_of(error: BaseException) -> str:
    return visible_lines(told(lambda: str(error), "(its str() fails)"), MAX_MESSAGE)


def traceback_of(error: BaseException, tb: TracebackType | None, limit: int = MAX_TRACEBACK) -> str:
    """Return a traceback as Python prints it, with causes and members, in about ``limit`` characters at most."""
    text = (
        told(lambda: _in_full(error, tb), "")
        or told(lambda: _in_short(error, tb), "")
        or f"{name_of(error)}: (its traceback cannot be shown)"
    )
    return _shortened(visible_lines(_shortened(text.rstrip(), limit)), limit)


def raised_at(error: BaseException) -> TracebackType | None:
    tb: TracebackType | None = _TRACEBACK(error)
    return tb


def in_users_code(error: BaseException) -> TracebackType | None:
    """Return an exception's traceback without our own first frames, which only lead to the task."""
    first = tb = raised_at(error)
    while first is not None and Path(first.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE):
        first = first.tb_next
    return first or tb


def log_failure(
    logger: logging.Logger,
    level: int,
    message: str,
    *args: object,
    error: BaseException | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Log a line, with the traceback of ``error``. Suppresses every exception of a handler.

    The record already has the formatted traceback, so that every text formatter shows this one. Error trackers find
    the exception itself in ``exc_info``.
    """
    try:
        if not logger.isEnabledFor(level):
            return
        exc_info = (type(error), error, raised_at(error)) if error is not None else None
        record = logger.makeRecord(logger.name, level, __file__, 0, message, args, exc_info, extra=extra)
        if error is not None:
            record.exc_text = traceback_of(error, in_users_code(error))
        logger.handle(record)
    except BaseException:  # a handler failed, or memory is short: a shorter line may succeed
        with suppress(BaseException):
            logger.log(level, message, *args, extra=extra)


def _in_full(error: BaseException, tb: TracebackType | None) -> str:
    """Return the traceback as the standard library formats it; an empty string if it would be too long."""
    if not _is_of_usual_size(error, tb):
        return ""
    return "".join(traceback.format_exception(type(error), error, tb))


def _is_of_usual_size(error: BaseException, tb: TracebackType | None) -> bool:
    seen: set[int] = set()
    waiting = [error]
    frames = _count(tb, _MAX_FRAMES)
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        frames += _count(raised_at(each), _MAX_FRAMES)
        if len(seen) > _MAX_ERRORS or frames > _MAX_FRAMES or len(str(each)) > _MAX_LONG_MESSAGE:
            return False
        waiting += _related(each)
    return True


def _count(tb: TracebackType | None, most: int) -> int:
    frames = 0
    while tb is not None and frames <= most:
        frames += 1
        tb = tb.tb_next
    return frames


def _related(error: BaseException) -> Iterator[BaseException]:
    """Yield the cause and the context of an exception, and a limited number of members of a group."""
    yield from (each for each in (_CAUSE(error), _CONTEXT(error)) if each is not None)
    if issubclass(type(error), BaseExceptionGroup):
        yield from _MEMBERS(error)[: _MAX_ERRORS + 1]


def _in_short(error: BaseException, tb: TracebackType | None) -> str:
    """Return the last frames and the closest exceptions, running as little of their code as possible."""
    frames: deque[TracebackType] = deque(maxlen=_SHORT_FRAMES)
    while tb is not None:
        frames.append(tb)
        tb = tb.tb_next
    lines = ["Traceback (most recent call last), abridged:"]
    for frame in frames:
        code, line = frame.tb_frame.f_code, frame.tb_lineno
        lines.append(f'  File "{code.co_filename}", line {line}, in {code.co_name}')
        lines += [f"    {source}"] if (source := _source(code.co_filename, line)) else []
    lines.append(_headline(error))
    seen, waiting = {id(error)}, deque(_related(error))
    while waiting and len(seen) <= _SHORT_ERRORS:
        each = waiting.popleft()
        if id(each) not in seen:
            seen.add(id(each))
            lines.append(f"with {_headline(each)}")
            waiting.extend(_related(each))
    if waiting:
        lines.append("and more")
    return "\n".join(lines)


def _source(file: str, line: int) -> str:
    return told(lambda: linecache.getline(file, line).strip(), "")


def _headline(error: BaseException) -> str:
    message = message_of(error)
    return f"{name_of(error)}: {message}" if message else name_of(error)


def _shortened(text: str, limit: int) -> str:
    """Cut the middle of a text: the beginning leads to the error, and the end, which matters more, names it."""
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]}\n[… {len(text) - limit} characters …]\n{text[head - limit :]}"
