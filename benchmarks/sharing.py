"""Compare ways to keep memory shared with forked processes that read their parent's objects.

Usage: python benchmarks/sharing.py [--megabytes N]. Needs only Linux and the standard library, so that any Python can
run it; each method runs in its own process. Prints the sum of PSS over parent and 4 children.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

from records import Record, make_records, read

CHILDREN = 4
IMMORTAL = 0xFFFFFFFF  # the reference count that Python 3.12 and 3.13 leave unchanged, see PEP 683


def nothing(_records: list[Record]) -> None:
    gc.enable()


def freeze(_records: list[Record]) -> None:
    gc.freeze()
    gc.enable()


def collect_and_freeze(_records: list[Record]) -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def immortalize(records: list[Record]) -> None:
    """Keep the reference counts of all objects in the records unchanged."""
    gc.freeze()
    left: list[object] = [records]
    while left:
        found = left.pop()
        count = ctypes.c_uint64.from_address(id(found))
        if not isinstance(found, type) and count.value < IMMORTAL:
            count.value = IMMORTAL
            left.extend(gc.get_referents(found))


class Children:
    """Forked processes that read inherited objects on request."""

    def __init__(self, records: list[Record], count: int) -> None:
        self._go = [os.pipe() for _ in range(count)]
        self._done = os.pipe()
        self.pids = [self._start(records, go) for go, _ in self._go]

    def _start(self, records: list[Record], go: int) -> int:
        pid = os.fork()
        if pid == 0:
            while os.read(go, 1) != b"!":
                read(records)
                gc.collect()
                os.write(self._done[1], b".")
            os._exit(0)
        return pid

    def read(self) -> None:
        for _, go in self._go:
            os.write(go, b".")
            os.read(self._done[0], 1)

    def end(self) -> None:
        for (_, go), pid in zip(self._go, self.pids, strict=True):
            os.write(go, b"!")
            os.waitpid(pid, 0)


def pss_mb(*pids: int) -> float:
    lines = (line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def try_way(prepare: Callable[[list[Record]], None], records: list[Record]) -> str:
    """Fork children, have them read; report the sum before and after."""
    prepare(records)
    children = Children(records, CHILDREN)
    before = pss_mb(os.getpid(), *children.pids)
    children.read()
    after = pss_mb(os.getpid(), *children.pids)
    children.end()
    return f"{before:6.0f} MB {after:6.0f} MB"


def try_template(records: list[Record]) -> str:
    """Fork children from a forked process that has already read the objects and is kept for this."""
    freeze(records)
    parent = os.getpid()
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        read(records)
        children = Children(records, CHILDREN)
        pids = (parent, os.getpid(), *children.pids)
        before = pss_mb(*pids)
        children.read()
        os.write(write_end, f"{before:6.0f} MB {pss_mb(*pids):6.0f} MB".encode())
        children.end()
        os._exit(0)
    text = os.read(read_end, 100).decode()
    os.wait()
    return text


def try_fork_for_each(records: list[Record]) -> str:
    """Have each child read in a separate process, which ends with it."""
    freeze(records)
    before = pss_mb(os.getpid())
    for _ in range(CHILDREN):
        children = Children(records, 1)
        children.read()
        children.end()
    return f"{before:6.0f} MB {pss_mb(os.getpid()):6.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    megabytes = parser.parse_args().megabytes
    ways: dict[str, Callable[[list[Record]], str]] = {
        "nothing": lambda records: try_way(nothing, records),
        "gc.freeze": lambda records: try_way(freeze, records),
        "gc.collect, gc.freeze": lambda records: try_way(collect_and_freeze, records),
        "gc.freeze, a child that has read as the parent of others": try_template,
        "gc.freeze, a process for each reading": try_fork_for_each,
    }
    if sys.version_info[:2] in ((3, 12), (3, 13)):
        ways["gc.freeze, immortal objects"] = lambda records: try_way(immortalize, records)
    version = sys.version.split()[0]
    print(f"Python {version}, {megabytes} MB of objects, parent and {CHILDREN} children: PSS, and after reads")
    for name, way in ways.items():
        sys.stdout.flush()
        if os.fork() == 0:
            gc.disable()
            print(f"{name:<60}{way(make_records(megabytes))}", flush=True)
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
