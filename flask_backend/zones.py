"""Names of time zones."""

from __future__ import annotations

from datetime import UTC, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from .message import show_value

FORMS = "expected the name of an IANA time zone, for example 'UTC' or 'Europe/Prague'"


def check_zone(name: object) -> str:
    """Return the name of a time zone if it can be loaded; raise :exc:`ValueError` with what is wrong and the forms."""
    try:
        if isinstance(name, str):
            load_zone(name)
            return name
    except (LookupError, ValueError, OSError):  # unknown; not a name; a folder of the database, such as Europe
        if not available_timezones():
            raise ValueError(
                f"{show_value(name)}, which cannot be loaded: this machine has no time zone database; install the "
                "system's package tzdata, or the one from PyPI"
            ) from None
    raise ValueError(f"{show_value(name)}, which is not a time zone; {FORMS}")


@lru_cache
def load_zone(name: str) -> tzinfo:
    """Return the time zone of this name. UTC needs no time zone database.

    Raises :exc:`LookupError`, :exc:`ValueError` or :exc:`OSError` for what is not a time zone.
    """
    return UTC if name == "UTC" else ZoneInfo(name)
