"""Fixtures for pytest; enable them with ``pytest_plugins = ["flask_backend.testing.plugin"]``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest
from flask import Flask

from flask_backend.testing import Memory, memory

from .processes import RunningWorker, running_broker, running_worker


class StartWorker(Protocol):
    """The type of the fixture :func:`backend_worker`."""

    def __call__(self, queue: str, *, app: str | None = None, **env: str) -> RunningWorker: ...


@pytest.fixture
def backend_memory(app: Flask) -> Iterator[Memory]:
    """Yield the scheduled calls of this test, with a worker for them: a :class:`flask_backend.testing.Memory`.

    ``app`` is your own fixture of this name, an app with ``BACKEND_CONNECTION_URI="memory://"`` in its config.
    """
    jobs = memory(app)
    jobs.clear()
    yield jobs
    jobs.clear()


@pytest.fixture
def backend_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URI of a real broker for this test alone: Beanstalkd if installed, otherwise the embedded broker."""
    with running_broker(tmp_path_factory.mktemp("backend")) as uri:
        yield uri


@pytest.fixture
def backend_worker(backend_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartWorker]:
    """Start real workers, each in its own process, on the broker of ``backend_server``; they end with the test.

    ``backend_worker("com.example/default", app="example:create_app")`` returns when the worker waits for jobs. ``app``
    works as the command line's ``--app``, including its default; other keywords are environment variables.
    """
    folder = tmp_path_factory.mktemp("backend")
    with ExitStack() as workers:

        def start(queue: str, *, app: str | None = None, **env: str) -> RunningWorker:
            return workers.enter_context(running_worker(backend_server, queue, app, env, folder))

        yield start
