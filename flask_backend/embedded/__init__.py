"""A small server for the beanstalk protocol, for development, tests and small installs on one machine.

Production runs beanstalkd: the worker does not notice the difference. Except in ``server`` and ``journal``, time and
bytes come in as arguments, so that the broker's decisions can be tested without a socket and without waiting.
"""

from __future__ import annotations

from .journal import Journal, JournalError
from .server import MAX_JOB_SIZE, Listen, serve

__all__ = ["MAX_JOB_SIZE", "Journal", "JournalError", "Listen", "serve"]
