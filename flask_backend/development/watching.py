"""Which files have changed: by watchfiles, if it is installed, or by looking at their times and sizes."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

# Between two looks: half of it is how long a change waits to be seen, on average.
_PAUSE_S = 0.25
# After a change: whoever saves several files, or one in several steps, has this long for the next.
_QUIET_S = 0.1
# Looking takes at most this share of the time, however many files there are.
_SHARE = 0.1

# Hidden folders, .venv and .git among them, are left out as well.
_IGNORED = {"__pycache__", "node_modules", "site-packages"}

Stamp = tuple[int, int]


class Source(Protocol):
    """Something that knows of changes."""

    def changes(self) -> set[str]:
        """Return the files that have changed since the last call."""
        ...


class Watch:
    """Gathers the changes of all sources, until nothing has changed for a moment."""

    def __init__(self, folder: str, extra: Sequence[str] = ()) -> None:
        """Watch the Python files below ``folder``, and what ``extra`` names: files, or folders with all they have."""
        self._folder = native(folder) or Polling(lambda: python_files(folder))
        self._extra = Polling(lambda: all_files(extra))
        self._modules = Polling(list[str])
        self._gathered: set[str] = set()
        self._next_look = 0.0

    def follow(self, modules: Iterable[str]) -> None:
        """Watch these files, too, instead of those that were named before."""
        self._gathered |= self._modules.changes()
        modules = list(modules)
        self._modules = Polling(lambda: modules)

    def wait_s(self, now: float) -> float:
        """Return the seconds until :meth:`look` has something to do."""
        return max(0.0, self._next_look - now)

    def look(self, now: float) -> set[str]:
        """Return what has changed, when that is all."""
        if now < self._next_look:
            return set()
        started = time.monotonic()
        news = self._folder.changes() | self._extra.changes() | self._modules.changes()
        took_s = time.monotonic() - started
        self._next_look = now + max(_QUIET_S if news else _PAUSE_S, took_s / _SHARE)
        if news:
            self._gathered |= news
            return set()
        gathered, self._gathered = self._gathered, set()
        return gathered


class Polling:
    """Looks at the files again and again."""

    def __init__(self, list_files: Callable[[], Iterable[str]]) -> None:
        self._list_files = list_files
        self._stamps = stamps_of(list_files())

    def changes(self) -> set[str]:
        before, self._stamps = self._stamps, stamps_of(self._list_files())
        return differences(before, self._stamps)


class _Native:
    """Asks watchfiles, whose own thread hears of changes from the system."""

    def __init__(self, watchfiles: Any, folder: str) -> None:
        def is_wanted(_change: object, path: str) -> bool:
            return is_python_file_of(folder, path)

        self._batches = watchfiles.watch(
            folder, watch_filter=is_wanted, debounce=1, step=1, rust_timeout=1, yield_on_timeout=True
        )
        next(self._batches)  # from now on it watches

    def changes(self) -> set[str]:
        return {path for _, path in next(self._batches)}


def native(folder: str) -> Source | None:
    """Return the source that the system has, if watchfiles is installed and the folder is not too much for it."""
    try:
        return _Native(importlib.import_module("watchfiles"), folder)
    except (ImportError, OSError):
        return None


def stamps_of(files: Iterable[str]) -> dict[str, Stamp]:
    """Return by what a file is known to have changed. A file that is not there has none."""
    stamps: dict[str, Stamp] = {}
    for path in files:
        try:
            stat = os.stat(path)  # noqa: PTH116  # thousands of Path objects, four times a second
        except OSError:
            continue
        stamps[path] = (stat.st_mtime_ns, stat.st_size)
    return stamps


def differences(before: Mapping[str, Stamp], after: Mapping[str, Stamp]) -> set[str]:
    """Return the files that are new, gone, or not what they were."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def python_files(folder: str) -> Iterator[str]:
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if _is_ours(name)]
        yield from (os.path.join(parent, name) for name in names if _is_python(name))  # noqa: PTH118  # likewise


def all_files(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        yield path
        for parent, _, names in os.walk(path):
            yield from (os.path.join(parent, name) for name in names)  # noqa: PTH118  # likewise


def is_python_file_of(folder: str, path: str) -> bool:
    """Say whether :func:`python_files` finds the file, or would if it were still there."""
    if not Path(path).is_relative_to(folder):
        return False
    *parents, name = Path(path).relative_to(folder).parts or ("",)
    return _is_python(name) and all(map(_is_ours, parents))


def _is_python(name: str) -> bool:
    return name.endswith(".py") and not name.startswith(".")


def _is_ours(name: str) -> bool:
    return not name.startswith(".") and name not in _IGNORED
