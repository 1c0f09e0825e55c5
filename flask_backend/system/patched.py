"""Detection of gevent and eventlet: workers cannot run with a standard library patched for greenlets."""

from __future__ import annotations

import sys

# The names of both libraries.
_MODULES = (
    *("socket", "ssl", "select", "selectors", "time", "os", "signal", "subprocess", "queue"),
    *("threading", "thread", "_thread", "builtins"),
)


def find_patch() -> str | None:
    """Return why workers cannot run here, if so, with the name of the library that has patched modules.

    This queries each library that has been imported: an import alone does not patch anything.
    """
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent and any(map(gevent.is_module_patched, _MODULES)):
        library = "gevent"
    elif eventlet and any(map(eventlet.is_monkey_patched, _MODULES)):
        library = "eventlet"
    else:
        return None
    return (
        f"{library} has patched the standard library, and workers could neither keep their jobs nor stop or reload: "
        "apply the patch where the web server starts, not where the app or a hook is imported"
    )
