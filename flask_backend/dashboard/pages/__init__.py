"""The pages and their acts. ``ALL`` is in the order of the navigation."""

from . import queue, queues

ALL = (queues.pages, queue.pages)
