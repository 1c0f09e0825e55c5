"""A prefork supervisor: keeps the right number of child processes alive, for each pool.

It knows neither Flask nor Beanstalkd: what a child does is a callable handed in.
"""

from .descriptors import Descriptors, TooFewDescriptorsError
from .loop import Supervisor, SupervisorOptions, Work
from .notify import Notifier
from .plan import Pool
from .process import ChildContext
from .reload import Handover, HandoverError, is_check
from .settling import SETTLED, SETTLED_FOR_GOOD
from .terminal import Terminal

__all__ = [
    "SETTLED",
    "SETTLED_FOR_GOOD",
    "ChildContext",
    "Descriptors",
    "Handover",
    "HandoverError",
    "Notifier",
    "Pool",
    "Supervisor",
    "SupervisorOptions",
    "Terminal",
    "TooFewDescriptorsError",
    "Work",
    "is_check",
]
