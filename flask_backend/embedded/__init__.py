"""A small server of the beanstalk protocol, for development, tests and small installs on one machine.

Production runs beanstalkd: no part of the worker knows the difference. Time and bytes come in as arguments everywhere
but in ``server`` and ``journal``, so that what the broker decides can be tested without a socket and without waiting.
"""

from __future__ import annotations

from .journal import Journal, JournalError
from .server import MAX_JOB_SIZE, Listen, serve

__all__ = ["MAX_JOB_SIZE", "Journal", "JournalError", "Listen", "serve"]
