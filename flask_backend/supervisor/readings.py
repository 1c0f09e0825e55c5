"""Readings of the memory of other processes."""

from __future__ import annotations

import importlib

from flask_backend.system.procfs import PROC_IS_THERE, read_memory, read_stat

from .memory import Usage

if not PROC_IS_THERE:  # an import needs a descriptor, and the loop may have run out of them
    importlib.import_module("psutil")


def usage(pid: int) -> Usage:
    """Return the cheap readings of a process's memory."""
    if PROC_IS_THERE:
        stat = read_stat(pid)
        return Usage(stat.rss_bytes, stat.faults) if stat else Usage(0, 0)  # it has just died
    import psutil

    try:
        return Usage(int(psutil.Process(pid).memory_info().rss), None)
    except psutil.Error:
        return Usage(0, None)


def private_bytes(pid: int) -> int:
    if PROC_IS_THERE:
        memory = read_memory(pid)
        return memory.private_bytes if memory else 0
    import psutil

    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0
