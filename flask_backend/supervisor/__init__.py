"""A prefork supervisor: keeps the right number of child processes alive, for each pool.

It knows neither Flask nor Beanstalkd: what a child does is a callable handed in.
"""

from .loop import Options, Supervisor
from .notify import Notifier
from .plan import Pool
from .process import ChildContext

__all__ = ["ChildContext", "Notifier", "Options", "Pool", "Supervisor"]
