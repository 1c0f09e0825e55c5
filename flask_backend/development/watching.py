"""Detects changed files: with watchfiles, if it is installed, or by polling their times and sizes."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

# Between two polls. On average a change is detected after half of it.
_PAUSE_S = 0.25
# After a change: an editor that saves several files, or one in several steps, has this long for the next step.
_QUIET_S = 0.1
# Polling takes at most this share of the time, even with many files.
_SHARE = 0.1

# Hidden folders, such as .venv and .git, are ignored as well.
_IGNORED = {"__pycache__", "node_modules", "site-packages"}

Stamp = tuple[int, int]


class Source(Protocol):
    """A source of changes."""

    def changes(self) -> set[str]:
        """Return the files that have changed since the last call."""
        ...


class Watch:
    """Collects the changes of all sources until they pause."""

    def __init__(self, folder: str, extra: Sequence[str] = ()) -> None:
        """Watch the Python files below ``folder``, and ``extra`` files and folders, with all files in those."""
        self._folder = native(folder) or Polling(lambda: python_files(folder))
        self._extra = Polling(lambda: all_files(extra))
        self._modules = Polling(list[str])
        self._gathered: set[str] = set()
        self._next_look = 0.0

    def follow(self, modules: Iterable[str]) -> None:
        """Watch these modules too. They replace the modules of the last call."""
        self._gathered |= self._modules.changes()
        modules = list(modules)
        self._modules = Polling(lambda: modules)

    def wait_s(self, now: float) -> float:
        """Return the seconds until :meth:`look` has something to do."""
        return max(0.0, self._next_look - now)

    def look(self, now: float) -> set[str]:
        """Return the changed files, once the changes have paused."""
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
    """Polls the files."""

    def __init__(self, list_files: Callable[[], Iterable[str]]) -> None:
        self._list_files = list_files
        self._stamps = stamps_of(list_files())

    def changes(self) -> set[str]:
        before, self._stamps = self._stamps, stamps_of(self._list_files())
        return differences(before, self._stamps)


class _Native:
    """Uses watchfiles, whose own thread receives changes from the system."""

    def __init__(self, watchfiles: Any, folder: str) -> None:
        def is_wanted(_change: object, path: str) -> bool:
            return is_python_file_of(folder, path)

        self._batches = watchfiles.watch(
            folder, watch_filter=is_wanted, debounce=1, step=1, rust_timeout=1, yield_on_timeout=True
        )
        next(self._batches)  # watching begins here

    def changes(self) -> set[str]:
        return {path for _, path in next(self._batches)}


def native(folder: str) -> Source | None:
    """Return the system's own source, if watchfiles is installed and can handle the folder."""
    try:
        return _Native(importlib.import_module("watchfiles"), folder)
    except (ImportError, OSError):
        return None


def stamps_of(files: Iterable[str]) -> dict[str, Stamp]:
    """Return the times and sizes that show whether files have changed. Missing files are left out."""
    stamps: dict[str, Stamp] = {}
    for path in files:
        try:
            stat = os.stat(path)  # noqa: PTH116  # thousands of Path objects, four times a second
        except OSError:
            continue
        stamps[path] = (stat.st_mtime_ns, stat.st_size)
    return stamps


def differences(before: Mapping[str, Stamp], after: Mapping[str, Stamp]) -> set[str]:
    """Return the files that were created, deleted or changed."""
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
    """Whether :func:`python_files` finds the file, or would find it if it still existed."""
    if not Path(path).is_relative_to(folder):
        return False
    *parents, name = Path(path).relative_to(folder).parts or ("",)
    return _is_python(name) and all(map(_is_ours, parents))


def _is_python(name: str) -> bool:
    return name.endswith(".py") and not name.startswith(".")


def _is_ours(name: str) -> bool:
    return not name.startswith(".") and name not in _IGNORED
