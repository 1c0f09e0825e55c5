"""What a transaction of a SQLAlchemy session has done, and what waits for its end.

SQLAlchemy is imported only if the app uses it. A session keeps its :class:`_Ledger` in ``Session.info``. A *level* is
the transaction itself, or a savepoint in it. SQLAlchemy announces the end of a level, after which its connection is
free again, by ``after_transaction_end``; only before that it tells, by ``after_commit`` or ``after_rollback``, how the
level ends. Neither comes if the session is just closed, and ``after_commit`` also comes for a savepoint.
"""

from __future__ import annotations

import importlib
import re
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from .errors import OptionError

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session, SessionTransaction, scoped_session

_KEY = "flask_backend.transactions"  # in Session.info
EXTENSION = "sqlalchemy"  # in Flask.extensions

# SQL that writes nothing. A function that a SELECT calls may write: that is not seen.
_READS = re.compile(
    r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*"
    r"(?:(?:select|show|explain|describe|pragma|values|table|set|savepoint|release|rollback|begin|commit|fetch)\b"
    r"|with\b(?!.*\b(?:insert|update|delete|merge)\b))",
    re.IGNORECASE | re.DOTALL,
)


class Waiting(Protocol):
    """Something that waits for the end of a transaction."""

    def drop(self, *, is_forgotten: bool) -> None:
        """Give up: it was rolled back; with ``is_forgotten``, the transaction has written and was never committed."""
        ...


Finish = Callable[[Sequence[Any]], None]


@dataclass(slots=True)
class _Level:
    """What a transaction or a savepoint has done so far."""

    waiting: list[Waiting] = field(default_factory=list[Waiting])
    has_written: bool = False
    is_committed: bool = False
    is_rolled_back: bool = False

    def drop(self, *, is_forgotten: bool) -> None:
        for each in self.waiting:
            each.drop(is_forgotten=is_forgotten)
        self.waiting.clear()


@dataclass(slots=True)
class _Ledger:
    """The levels of a session's transaction, the outermost first, and what is called with all that waited for it."""

    finish: Finish | None = None
    levels: dict[SessionTransaction, _Level] = field(default_factory=dict["SessionTransaction", _Level])


# The session of each connection that is in a transaction: the events of a connection do not name it.
_sessions: weakref.WeakKeyDictionary[Connection, weakref.ref[Session]] = weakref.WeakKeyDictionary()


def watch(*, is_wanted: bool = False) -> None:
    """Begin to note what the transactions of all sessions do, if SQLAlchemy is imported; with ``is_wanted`` import it.

    Before, it is not known what a transaction has written by other means than a flush.
    """
    if is_wanted:
        importlib.import_module("sqlalchemy.orm")
    orm: Any = sys.modules.get("sqlalchemy.orm")
    if orm is None:
        return
    from sqlalchemy import Engine, event

    listeners: Mapping[str, Callable[..., None]] = {
        "after_begin": _after_begin,
        "after_flush": _after_flush,
        "after_commit": _after_commit,
        "after_rollback": _after_rollback,
        "after_transaction_end": _after_end,
    }
    if not event.contains(orm.Session, "after_begin", _after_begin):
        for name, listener in listeners.items():
            event.listen(orm.Session, name, listener)
        event.listen(Engine, "before_cursor_execute", _before_execute)


def session_of(given: Session | scoped_session[Any]) -> Session:
    """Return the session that is in use, for a ``scoped_session`` that of its scope."""
    from sqlalchemy.orm import scoped_session

    return cast("Session", given() if isinstance(given, scoped_session) else given)


def find_written_session(app: Flask) -> Session | None:
    """Return the session of the app's Flask-SQLAlchemy if it has changes that are not committed. Makes no session."""
    from flask import has_app_context

    scoped: Any = getattr(app.extensions.get(EXTENSION), "session", None) if has_app_context() else None
    scope = getattr(scoped, "registry", None)
    if scope is None or not scope.has():
        return None
    session = session_of(scoped)
    return session if has_written(session) else None


def has_written(session: Session) -> bool:
    """Whether the session has changes that are not committed, flushed or not."""
    ledger = session.info.get(_KEY)
    if ledger is not None and any(level.has_written for level in ledger.levels.values()):
        return True
    return _has_changes(session)


def _has_changes(session: Session) -> bool:
    """Whether the session has changes that are not flushed."""
    return bool(session.new or session.deleted) or any(session.is_modified(each) for each in session.dirty)


def wait_for_end(session: Session, waiting: Sequence[Waiting], finish: Finish) -> None:
    """Call ``finish`` with these, and all others that wait, after the outermost transaction; drop them at a rollback.

    Begins a transaction if there is none. Raises :exc:`OptionError` for a session that begins none by itself.
    """
    watch()
    if not session.in_transaction():
        if not session.autobegin:
            raise OptionError(
                "after_commit is a session that is not in a transaction, and has autobegin=False: make the call inside "
                "of `with session.begin():`"
            )
        session.begin()
    ledger = _ledger_of(session)
    ledger.finish = finish
    level = _level_of(ledger, _innermost(session))
    level.waiting.extend(waiting)
    level.has_written |= _has_changes(session)  # which it forgets when it is closed


def withdraw(session: Session, waiting: Waiting) -> None:
    """Let something wait no longer."""
    for level in _ledger_of(session).levels.values():
        if waiting in level.waiting:
            level.waiting.remove(waiting)


def _ledger_of(session: Session) -> _Ledger:
    ledger: _Ledger | None = session.info.get(_KEY)
    if ledger is None:
        ledger = session.info[_KEY] = _Ledger()
    return ledger


def _innermost(session: Session) -> SessionTransaction:
    """Return the savepoint that the session is in, or its transaction."""
    found = session.get_nested_transaction() or session.get_transaction()
    if found is None:
        raise OptionError("after_commit is a session without a transaction")
    return found


def _level_of(ledger: _Ledger, transaction: SessionTransaction) -> _Level:
    level = ledger.levels.get(transaction)
    if level is None:
        level = ledger.levels[transaction] = _Level(has_written=_has_flushed(transaction))
    return level


def _has_flushed(transaction: SessionTransaction) -> bool:
    """Whether a transaction that was not watched from its beginning has flushed changes: SQLAlchemy keeps these."""
    kept = (getattr(transaction, name, None) for name in ("_new", "_dirty", "_deleted"))
    return any(each is not None and len(each) > 0 for each in kept)


# -- events of SQLAlchemy ------------------------------------------------------------------------------------------


def _after_begin(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    _sessions[connection] = weakref.ref(session)


def _before_execute(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
    found = _sessions.get(connection)
    if found is not None and not _READS.match(statement) and (session := found()) is not None:
        _note_write(session)


def _after_flush(session: Session, _context: Any) -> None:
    _note_write(session)


def _note_write(session: Session) -> None:
    if session.in_transaction():
        _level_of(_ledger_of(session), _innermost(session)).has_written = True


def _after_commit(session: Session) -> None:
    if ledger := session.info.get(_KEY):
        _level_of(ledger, _innermost(session)).is_committed = True


def _after_rollback(session: Session) -> None:
    ledger: _Ledger | None = session.info.get(_KEY)
    if ledger is not None and session.in_transaction():
        level = _level_of(ledger, _innermost(session))
        level.is_rolled_back = True
        level.drop(is_forgotten=False)


def _after_end(session: Session, transaction: SessionTransaction) -> None:
    ledger: _Ledger | None = session.info.get(_KEY)
    level = ledger.levels.pop(transaction, None) if ledger is not None else None
    if ledger is None or level is None:
        return
    if level.is_rolled_back:
        level.drop(is_forgotten=False)
    elif not level.is_committed and level.has_written:
        level.drop(is_forgotten=True)
    elif transaction.nested and session.in_transaction():
        outer = _level_of(ledger, _innermost(session))
        outer.waiting += level.waiting
        outer.has_written |= level.has_written
    elif level.waiting and ledger.finish is not None:
        ledger.finish(level.waiting)


def forget_connections(app: Flask) -> None:
    """Let a forked process open connections of its own: those of its parent stay open, and are not used here."""
    extension: Any = app.extensions.get(EXTENSION)
    if isinstance(getattr(cast("object", type(extension)), "engines", None), property):
        with app.app_context():
            engines = list(extension.engines.values())
        for engine in engines:
            engine.dispose(close=False)
