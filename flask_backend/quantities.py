"""Durations, times, sizes and counts in words, for people. Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def show_seconds(seconds: float) -> str:
    """Return a duration in at most two units: 9s, 2m5s, 3h, 4d2h."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return "".join(parts[:2]) or "0s"


def show_size(size: int | None) -> str:
    """Return a size in megabytes; empty if it is unknown."""
    return "" if size is None else f"{size / (1 << 20):.1f}M"


def show_duration(seconds: float | None) -> str:
    """Return a short duration: 15.0ms, 2.5s; empty if it is unknown."""
    if seconds is None:
        return ""
    return f"{seconds * 1000:.1f}ms" if seconds < 1 else f"{seconds:.1f}s"


def count_of(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def show_time(at: float) -> str:
    """Return a time, in seconds since the epoch, in this machine's zone."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
