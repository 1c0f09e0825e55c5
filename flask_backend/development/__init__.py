"""The session of ``flask-backend dev``: runs the programs that an app needs, and reloads them when a file changes.

No part of the app is imported here, so that the app cannot end the session.
"""

from __future__ import annotations

from .inquiry import App, answer, asked
from .loop import NAMES, Development
from .plan import DevelopmentPlan
from .transcript import Transcript

__all__ = ["NAMES", "App", "Development", "DevelopmentPlan", "Transcript", "answer", "asked"]
