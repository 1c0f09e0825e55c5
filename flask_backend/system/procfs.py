"""Facts about processes from /proc, see proc(5). Linux only: other systems lack this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
PROC_IS_THERE = Path("/proc/self/smaps_rollup").exists()
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Fields of `stat`, counted from the one after the name, since a name may contain spaces and parentheses.
_PPID, _FAULTS, _STARTED, _RSS = 1, 7, 19, 21


@dataclass(frozen=True, slots=True)
class Stat:
    """The system's counters of a process, which are very cheap to read.

    ``started`` is in seconds since the system's boot. ``faults`` counts the pages that were mapped or copied without a
    read from disk.
    """

    parent: int
    started: float
    rss_bytes: int
    faults: int


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The memory of a process. To measure it, the system walks the page tables: 1 ms for 200 MB.

    ``private_bytes`` belongs to it alone (USS); ``pss_bytes`` includes its share of each shared page (PSS).
    """

    rss_bytes: int
    private_bytes: int
    pss_bytes: int

    @property
    def shared_bytes(self) -> int:
        return self.rss_bytes - self.private_bytes


def read_stat(pid: int, proc: Path = PROC) -> Stat | None:
    """Return the system's counters of a process, if it exists."""
    try:
        text = _read(proc, pid, "stat")
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(
        parent=int(fields[_PPID]),
        started=int(fields[_STARTED]) / _TICKS_PER_S,
        rss_bytes=int(fields[_RSS]) * PAGE_BYTES,
        faults=int(fields[_FAULTS]),
    )


def read_memory(pid: int, proc: Path = PROC) -> MemoryUse | None:
    """Return the memory use of a process, if it is alive and this user may read it."""
    try:
        text = _read(proc, pid, "smaps_rollup")
    except OSError:
        return None
    kilobytes: dict[bytes, int] = {}
    for line in text.splitlines()[1:]:  # the first one has the addresses
        name, value, *_ = line.split()
        kilobytes[name] = int(value)
    return MemoryUse(
        rss_bytes=kilobytes[b"Rss:"] << 10,
        private_bytes=(kilobytes[b"Private_Clean:"] + kilobytes[b"Private_Dirty:"]) << 10,
        pss_bytes=kilobytes[b"Pss:"] << 10,
    )


def ignores(pid: int, number: int, proc: Path = PROC) -> bool:
    """Whether a process ignores a signal."""
    try:
        lines = _read(proc, pid, "status").splitlines()
    except OSError:
        return False
    mask = next((int(line.split()[1], 16) for line in lines if line.startswith(b"SigIgn:")), 0)
    return bool(mask >> (number - 1) & 1)


def titles(proc: Path = PROC) -> Iterator[tuple[int, str]]:
    """Yield all living processes, each with its title: the one in `ps`, by default the command line."""
    for folder in proc.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            text = _read(proc, int(folder.name), "cmdline")
        except OSError:
            continue  # it has just ended, or is hidden from this user
        if text:
            yield int(folder.name), text.replace(b"\0", b" ").decode(errors="replace").rstrip()


def uptime_s(proc: Path = PROC) -> float:
    """Return the seconds since the system's boot."""
    return float((proc / "uptime").read_bytes().split()[0])


def _read(proc: Path, pid: int, name: str) -> bytes:
    with open(f"{proc}/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123  # a third of the time, for each child
        return file.read()
