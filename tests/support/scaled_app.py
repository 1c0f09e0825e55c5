"""The workload, in a supervisor that looks at its queues often and decides soon."""

from __future__ import annotations

from flask_backend.cli import demand as reader
from flask_backend.supervisor import demand, enforcement, observer, scaling
from support.workload import app, backend

enforcement.LOOK_S = observer.SAMPLE_S = 0.1
observer.LOOK_AGAIN_S = reader.MAX_TIMEOUT_S = 0.2
observer.HUNG_S = observer.SILENT_S = 2.0
demand.GROW_AFTER_S = (0.3, 1.5)
demand.SHRINK_AFTER_S = (1.5, 2.0)
scaling.HOLD_MIN_S = 1.0

__all__ = ["app", "backend"]
