"""The queue of `hasty_app`, and bodies for it. A test cannot import that app: it shortens the waits of its process."""

from __future__ import annotations

QUEUE = "hasty"
BODIES = [
    *(
        b'{"endpoint": "note", "headers": {"id": "1"}}',
        b'{"endpoint": "note"}',
        b'{"endpoint": "later"}',
        b"[]",
        b"\xff",
    ),
    *(b'{"endpoint": "fail"}', b'{"endpoint": "bury"}', b'{"endpoint": "discard"}', b'{"endpoint": "lacking"}'),
]
