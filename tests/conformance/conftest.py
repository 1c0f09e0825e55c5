from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from servers import START
from wire import Wire

_numbers = count()

MAX_JOB_SIZE = 1000


@pytest.fixture(scope="module", params=START)
def server(request):
    """Each server in turn, shared by the tests of a module: separate tubes keep these apart."""
    running = START[request.param](max_job_size=MAX_JOB_SIZE)
    yield running
    running.stop()


@pytest.fixture
def tube():
    return f"tube-{next(_numbers)}"


@pytest.fixture
def connect(server, tube):
    """Make connections that use and watch this test's own tube; they are closed with the test."""
    made: list[Wire] = []

    def connect(tube: str | None = tube) -> Wire:
        made.append(Wire(server.port, tube))
        return made[-1]

    yield connect
    for wire in made:
        wire.close()


@pytest.fixture
def wire(connect: Callable[[], Wire]):
    return connect()
