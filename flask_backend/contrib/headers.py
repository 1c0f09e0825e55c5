"""The headers of traces in a message: any JSON may arrive, and several tracers write ``baggage``."""

from __future__ import annotations

BAGGAGE = "baggage"
_MAX_HEADER = 8192  # characters: tracers write no longer ones


def header_text(value: object) -> str:
    """Return the value of a header; an empty string if it cannot be that of a tracer."""
    return value if isinstance(value, str) and len(value) <= _MAX_HEADER and value.isascii() else ""


def merge_baggage(first: str, second: object) -> str:
    """Return the items of both lists, ``key=value`` separated by commas; of two with one key, the first."""
    items: dict[str, str] = {}
    for item in f"{first},{header_text(second)}".split(","):
        if item.strip():
            items.setdefault(item.partition("=")[0].strip(), item.strip())
    return ",".join(items.values())
