"""Names of time zones."""

from __future__ import annotations

from zoneinfo import ZoneInfo, available_timezones

from .message import show_value

FORMS = "expected the name of an IANA time zone, for example 'UTC' or 'Europe/Prague'"


def check_zone(name: object) -> str:
    """Return the name of a time zone if it can be loaded; raise :exc:`ValueError` with what is wrong and the forms."""
    try:
        if isinstance(name, str):
            return ZoneInfo(name).key
    except (LookupError, ValueError, OSError):  # unknown; not a name; a folder of the database, such as Europe
        if not available_timezones():
            raise ValueError(
                f"{show_value(name)} cannot be loaded: this machine has no time zone database; install the system's "
                "package tzdata, or the one from PyPI"
            ) from None
    raise ValueError(f"{show_value(name)} is not a time zone; {FORMS}")
