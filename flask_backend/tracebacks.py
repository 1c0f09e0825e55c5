"""An exception in words: its name, its message and its traceback, each bounded. Telling one cannot fail.

The code of an exception may do anything. Its text may be bytes, its class may have no module, and its ``__str__`` or a
property may raise even SystemExit. An exception that cannot be told in full is told in short.
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
# Characters of a traceback in a log: a long chain of causes has room.
MAX_TRACEBACK = 20_000

# Where there is more than this, of an exception with its causes and members, the traceback is told in short.
_MAX_ERRORS = 50
_MAX_FRAMES = 2000
_MAX_LONG_MESSAGE = MAX_TRACEBACK // 2
_SHORT_FRAMES = 20
_SHORT_ERRORS = 5

_PACKAGE = Path(__file__).parent

# Attributes as Python itself keeps them: a class, or a metaclass, may give another meaning to each name.
_NAME, _MODULE = vars(type)["__qualname__"].__get__, vars(type)["__module__"].__get__
_TRACEBACK = vars(BaseException)["__traceback__"].__get__
_CAUSE, _CONTEXT = vars(BaseException)["__cause__"].__get__, vars(BaseException)["__context__"].__get__
_MEMBERS = vars(BaseExceptionGroup)["exceptions"].__get__


def told(tell: Callable[[], Any], otherwise: str) -> str:
    """Return the text that ``tell`` returns; ``otherwise`` if that is not a text, or if it raises anything."""
    try:
        return str.__str__(tell())
    except BaseException:  # SystemExit too: the code of others decides what comes
        return otherwise


def name_of(error: BaseException) -> str:
    """Return the name of an exception's class, with its module unless that is Python's or ours."""
    kind = type(error)
    name, module = told(lambda: _NAME(kind), "an exception"), told(lambda: _MODULE(kind), "")
    is_known = module in ("", "builtins") or module.startswith("flask_backend.")
    return visible(name if is_known else f"{module}.{name}", MAX_NAME)


def message_of(error: BaseException) -> str:
    return visible_lines(told(lambda: str(error), "(its str() fails)"), MAX_MESSAGE)


def traceback_of(error: BaseException, tb: TracebackType | None, limit: int = MAX_TRACEBACK) -> str:
    """Return a traceback as Python prints it, with causes and members, in at most about ``limit`` characters."""
    text = (
        told(lambda: _in_full(error, tb), "")
        or told(lambda: _in_short(error, tb), "")
        or f"{name_of(error)}: (its traceback cannot be told)"
    )
    return _shortened(visible_lines(_shortened(text.rstrip(), limit)), limit)


def raised_at(error: BaseException) -> TracebackType | None:
    tb: TracebackType | None = _TRACEBACK(error)
    return tb


def in_users_code(error: BaseException) -> TracebackType | None:
    """Return an exception's traceback without our own first frames, which lead to the task and explain nothing."""
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
    """Log a line, with the traceback of ``error``; nothing that a handler raises gets out.

    The traceback is in the record already, so that every text formatter shows this one. Programs that collect errors
    find the exception itself in ``exc_info``.
    """
    try:
        if not logger.isEnabledFor(level):
            return
        exc_info = (type(error), error, raised_at(error)) if error is not None else None
        record = logger.makeRecord(logger.name, level, __file__, 0, message, args, exc_info, extra=extra)
        if error is not None:
            record.exc_text = traceback_of(error, in_users_code(error))
        logger.handle(record)
    except BaseException:  # a handler failed, or memory is short: a shorter line may do
        with suppress(BaseException):
            logger.log(level, message, *args, extra=extra)


def _in_full(error: BaseException, tb: TracebackType | None) -> str:
    """Return the traceback as the standard library words it; an empty text if that would be too much."""
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
    """Yield what an exception was raised from, or after, and at most a few members of a group."""
    yield from (each for each in (_CAUSE(error), _CONTEXT(error)) if each is not None)
    if issubclass(type(error), BaseExceptionGroup):
        yield from _MEMBERS(error)[: _MAX_ERRORS + 1]


def _in_short(error: BaseException, tb: TracebackType | None) -> str:
    """Return the last frames and the exceptions that are closest, without calling more of their code than needed."""
    frames: deque[TracebackType] = deque(maxlen=_SHORT_FRAMES)
    while tb is not None:
        frames.append(tb)
        tb = tb.tb_next
    lines = ["Traceback (most recent call last), in short:"]
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
    """Leave out the middle of a text: the beginning leads to the error, and the end, which matters more, names it."""
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]}\n[… {len(text) - limit} characters …]\n{text[head - limit :]}"
