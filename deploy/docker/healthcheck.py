# ruff: noqa: INP001  # a script, not a module
"""Exit 0 if process 1, or the pid given, is a supervisor with a worker that has finished starting.

Reads only /proc, which takes a few milliseconds. It does not check Beanstalkd: workers outlive a broker that is away,
and restarting them would not bring it back.
"""

import sys
from pathlib import Path

PROC = Path("/proc")


def title(pid: str) -> str:
    try:
        return (PROC / pid / "cmdline").read_text(encoding="utf-8", errors="replace").rstrip("\0")
    except OSError:
        return ""  # the process has just ended


def parent(pid: str) -> str:
    try:
        # The name in parentheses may hold anything, parentheses too: only numbers follow the last one.
        stat = (PROC / pid / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[1]


def complaint(supervisor: str) -> str | None:
    if not title(supervisor).startswith("flask-backend: master "):
        return f"process {supervisor} is not a supervisor that has started: {title(supervisor) or 'gone'}"
    pids = [entry.name for entry in PROC.iterdir() if entry.name.isdecimal()]
    workers = [title(pid) for pid in pids if parent(pid) == supervisor]
    if not any(name.startswith("flask-backend: worker ") and not name.endswith("[starting]") for name in workers):
        return f"no worker is ready: {', '.join(workers) or 'it has none'}"
    return None


if __name__ == "__main__":
    sys.exit(complaint(sys.argv[1] if len(sys.argv) > 1 else "1"))
