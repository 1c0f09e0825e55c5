"""The machine of a measurement, and the versions of the software."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("flask", "greenstalk", "celery", "dramatiq", "huey", "rq", "redis")
SERVERS = {"beanstalkd": ["beanstalkd", "-v"], "redis-server": ["redis-server", "--version"]}


def describe() -> dict[str, str]:
    """Return all the facts about the machine that a reader needs, by name."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "CPU": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{name: version for name, command in SERVERS.items() if (version := _server_version(command))},
        **{name: version for name in PACKAGES if (version := _package_version(name))},
    }


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _server_version(command: list[str]) -> str | None:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return None
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else None


def _package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
