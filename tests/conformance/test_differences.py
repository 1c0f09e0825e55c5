"""The known differences between beanstalkd and the embedded broker: each exists and is on the list."""

from __future__ import annotations

import pytest
from differences import DIFFERENCES
from servers import START
from support.waiting import wait_until
from wire import Wire


@pytest.fixture
def wires():
    """Return a connection to each server, which no other test uses."""
    servers = [start() for start in START.values()]
    made = [Wire(server.port, "t") for server in servers]
    yield made
    for wire in made:
        wire.close()
    for server in servers:
        server.stop()


def first_id_after_a_body_of_another_length(wire: Wire) -> object:
    assert wire.ask("put 0 0 1 1", "xyz") == b"EXPECTED_CRLF"
    assert wire.read() == b"UNKNOWN_COMMAND"
    return wire.put()


def puts_counted_after_a_malformed_one(wire: Wire) -> object:
    assert wire.ask("put 0 0 1 1 x") == b"BAD_FORMAT"
    return wire.stats()["cmd-put"]


def answers_a_line_with_a_carriage_return(wire: Wire) -> object:
    wire.send("use a\rb")
    return wire.has_reply(0.1)


def answers_a_line_of_225_bytes(wire: Wire) -> object:
    wire.send("use " + "a" * 219)
    return wire.has_reply(0.1)


def tubes_in_order(wire: Wire) -> object:
    for command in ("watch a", "watch b", "watch c", "ignore a"):
        wire.ask(command)
    return wire.ask("list-tubes-watched").split(b"\n- ")[1:]


def what_it_is(wire: Wire) -> object:
    stats = wire.stats()
    return stats["binlog-max-size"], "embedded broker of Flask-Backend" in stats["os"]


SHOWN = {
    "a put that ends in EXPECTED_CRLF uses up no id": (first_id_after_a_body_of_another_length, (2, 1)),
    "cmd-put counts only complete puts": (puts_counted_after_a_malformed_one, ("1", "0")),
    "a carriage return in the middle of a line does not end it": (
        answers_a_line_with_a_carriage_return,
        (False, True),
    ),
    "a line of 225 bytes is too long like any longer one": (answers_a_line_of_225_bytes, (False, True)),
    "tubes are listed in the order in which they were first used": (
        tubes_in_order,
        ([b"t", b"c", b"b\n"], [b"t", b"b", b"c\n"]),
    ),
    "the statistics of the binlog are 0, and `os` names the broker": (
        what_it_is,
        (("10485760", False), ("0", True)),
    ),
}


@pytest.mark.parametrize("difference", SHOWN)
def test_a_difference_exists_and_is_known(wires, difference):
    show, both = SHOWN[difference]
    assert difference in DIFFERENCES
    assert tuple(map(show, wires)) == both


def test_waiting_clients_are_served_in_order_of_arrival(request):
    assert any(difference.startswith("of several clients that wait") for difference in DIFFERENCES)
    server = START["embedded"]()
    request.addfinalizer(server.stop)
    control = Wire(server.port, "t")
    waiting = []
    for count in range(1, 6):
        waiting.append(Wire(server.port, "t"))
        waiting[-1].send("reserve")
        wait_until(lambda n=count: control.stats()["current-waiting"] == str(n), "it waits")
    ids = [control.put() for _ in waiting]
    assert [int(wire.read().split()[1]) for wire in waiting] == ids
    for wire in (*waiting, control):
        wire.close()
