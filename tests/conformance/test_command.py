"""`flask-backend broker`, as users start it."""

from __future__ import annotations

import signal

import pytest
from servers import Embedded, run
from wire import Wire


@pytest.fixture
def server():
    running = Embedded()
    yield running
    running.kill()


def test_it_prints_its_address_and_its_purpose(server):
    assert server.announcement == (
        f"broker at 127.0.0.1:{server.port}, jobs in memory; "
        "for development and small installs; production runs beanstalkd\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_term_and_int_even_with_clients_connected(server, number):
    with Wire(server.port) as waiting, Wire(server.port) as idle:
        waiting.send("reserve")
        idle.put()
        server.process.send_signal(number)
        assert server.wait() == (0, "")


def test_a_port_in_use_is_an_error_that_says_so(server):
    code, said = run("--port", str(server.port))
    assert code == 1
    assert said == (
        f"Error: cannot listen on 127.0.0.1, port {server.port}: Address already in use; "
        "stop the program that listens there, or choose another --port or --listen\n"
    )


def test_an_address_that_is_not_ours_is_an_error_that_says_so():
    code, said = run("--listen", "192.0.2.1")
    assert code == 1
    assert said.startswith("Error: cannot listen on 192.0.2.1, port 0: ")
    assert said.count("\n") == 1


def test_a_port_is_free_again_at_once(server):
    with Wire(server.port) as wire:
        wire.put()
        server.kill()
    again = Embedded(port=server.port)
    assert again.port == server.port
    again.stop()


def test_options_have_environment_variables(tmp_path):
    code, said = run(BACKEND_BROKER_FILE=str(tmp_path / "nowhere" / "jobs"))
    assert (code, "its folder must exist" in said) == (1, True)
    code, said = run(BACKEND_BROKER_MAX_JOB_SIZE="none")
    assert (code, "'none' is not a size" in said) == (2, True)
    code, said = run("--max-job-size", "1T")
    assert (code, "expected at most 536870912 bytes" in said) == (2, True)
    code, said = run(BACKEND_BROKER_LISTEN="no.such.host.invalid")
    assert (code, "cannot listen on no.such.host.invalid" in said) == (1, True)
