from __future__ import annotations

import itertools
import os
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from instances import Instance
from nspawn import BootError, Machine

ROOT = Path(__file__).parents[2]
TREE = os.environ.get("SYSTEMD_TREE")
DOCS = ROOT / "docs" / "run"
if TREE is None:  # `./run test-systemd` makes it
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def boot(tmp_path_factory):
    """Boot a machine, with the units and the broker as the docs say. Only one can use the tree at a time."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which lets fixtures end

    @contextmanager
    def boot(*options):
        try:
            machine = Machine(Path(TREE), tmp_path_factory.mktemp("nspawn") / "log", *options)
        except BootError as error:
            if os.environ.get("REQUIRE_SYSTEMD"):
                raise
            pytest.skip(str(error))
        try:
            for page in ("systemd.md", "beanstalkd.md"):
                for line in re.findall(r"(?m)^(?:  `)?(install [^`\n]+)", (DOCS / page).read_text()):
                    machine.run("sh", "-c", line, folder="/srv/flask-backend")
            machine.run("systemctl", "daemon-reload")
            machine.run("systemctl", "restart", "beanstalkd")
            yield machine
        finally:
            machine.end()

    return boot


@pytest.fixture(scope="session")
def machine(boot):
    with boot() as machine:
        yield machine


@pytest.fixture
def make(machine):
    """Make instances, which end with the test."""
    made = []

    def make(name):
        made.append(Instance(machine, name))
        return made[-1]

    yield make
    for instance in made:
        instance.machine.run("systemctl", "kill", "--signal=KILL", instance.unit, check=False)
        instance.machine.run("systemctl", "stop", instance.unit, check=False)
        instance.machine.run("systemctl", "reset-failed", instance.unit, check=False)


@pytest.fixture(scope="session")
def numbers():
    return itertools.count(1)


@pytest.fixture
def instance(make, numbers):
    """An instance with a name of its own."""
    return make(f"app-{next(numbers)}")
