"""A prefork supervisor: keeps the right number of child processes alive in each pool.

It does not depend on Flask or Beanstalkd: the work of a child is a callable, passed in.
"""

from .context import ChildContext
from .demand import Demand
from .descriptors import Descriptors, TooFewDescriptorsError
from .events import Event, EventName, EventSink
from .handover import Handover, HandoverError
from .loop import Supervisor
from .notify import Notifier, ServiceManager
from .options import SupervisorOptions, Work
from .plan import MAX_CHILDREN, Bounds, Pool
from .reload import is_check
from .service import Service
from .settling import SETTLED, SETTLED_FOR_GOOD
from .terminal import Terminal

__all__ = [
    "MAX_CHILDREN",
    "SETTLED",
    "SETTLED_FOR_GOOD",
    "Bounds",
    "ChildContext",
    "Demand",
    "Descriptors",
    "Event",
    "EventName",
    "EventSink",
    "Handover",
    "HandoverError",
    "Notifier",
    "Pool",
    "Service",
    "ServiceManager",
    "Supervisor",
    "SupervisorOptions",
    "Terminal",
    "TooFewDescriptorsError",
    "Work",
    "is_check",
]
