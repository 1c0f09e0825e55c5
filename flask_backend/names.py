"""Queue names: which ones Beanstalkd takes as a tube."""

from __future__ import annotations

import re

from .errors import QueueNameError

# doc/protocol.txt of beanstalkd: letters, digits and these, at most 200 bytes, no leading hyphen.
_MAX_BYTES = 200
_TUBE = re.compile(r"[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]{0,199}")


def check_queue_name(name: str) -> str:
    """Return ``name`` if it can be a tube, else raise :exc:`QueueNameError`.

    The check also stands between a name and the wire: beanstalkd reads a line break in it as the next command.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise QueueNameError(f"a queue name must be a string, got {type(name).__name__}: {name!r}")
    if _TUBE.fullmatch(name) is None:
        size = len(name.encode(errors="replace"))
        shown = f"{name[:60]!r}… ({size} bytes)" if size > _MAX_BYTES else repr(name)
        raise QueueNameError(
            f"{shown} cannot be a queue name: use 1 to 200 letters, digits and -+/;.$_() "
            "with no hyphen in front, for example 'com.example/default'"
        )
    return name
