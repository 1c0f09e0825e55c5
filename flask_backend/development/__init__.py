"""What ``flask-backend dev`` runs: the programs that an app needs, and their reload when a file has changed.

No part of the app is imported here, so that nothing in it can end the session.
"""

from __future__ import annotations

from .inquiry import App, answer, asked
from .loop import NAMES, Development
from .plan import DevelopmentPlan
from .transcript import Transcript

__all__ = ["NAMES", "App", "Development", "DevelopmentPlan", "Transcript", "answer", "asked"]
