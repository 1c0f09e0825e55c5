"""An app in memory, for tests that need no other."""

from __future__ import annotations

import pytest
from support.in_memory import make_app


@pytest.fixture
def app_and_backend():
    return make_app()


@pytest.fixture
def app(app_and_backend):
    return app_and_backend[0]


@pytest.fixture
def backend(app_and_backend):
    return app_and_backend[1]
