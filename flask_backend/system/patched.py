"""Interpreters whose standard library gevent or eventlet has patched for greenlets. No worker can run in one."""

from __future__ import annotations

import sys

# By the names of either library.
_MODULES = (
    *("socket", "ssl", "select", "selectors", "time", "os", "signal", "subprocess", "queue"),
    *("threading", "thread", "_thread", "builtins"),
)


def find_patch() -> str | None:
    """Return why no worker can run here, with the name of the library that has patched something; None if none has.

    The libraries are asked, if something has imported them: their import alone patches nothing.
    """
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent and any(map(gevent.is_module_patched, _MODULES)):
        library = "gevent"
    elif eventlet and any(map(eventlet.is_monkey_patched, _MODULES)):
        library = "eventlet"
    else:
        return None
    return (
        f"{library} has patched the standard library, and workers would neither keep their jobs nor stop or reload: "
        "have it patch where the web server starts, not where the app or a hook is imported"
    )
