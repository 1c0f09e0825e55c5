from __future__ import annotations

import pytest
from fakes import Clock, NoProcesses

from flask_backend.supervisor.helpers import Helpers


@pytest.fixture
def processes():
    return NoProcesses()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def helpers(processes, clock):
    return Helpers(None, processes, clock)
