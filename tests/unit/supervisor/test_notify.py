from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path

import pytest
from support.manager import Manager

from flask_backend.supervisor import Notifier, ServiceManager
from flask_backend.supervisor.notify import EXTENSION_S, LEAST_S, STATUS_CHARS, STOP_MARGIN_S

PATIENCE = 30_000_000  # microseconds


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    manager = Manager(tmp_path if request.param == "path" else None)
    yield manager
    manager.close()


@pytest.fixture
def notifier(manager):
    notifier = Notifier(ServiceManager(manager.variable, PATIENCE))
    yield notifier
    notifier.close_in_child()


def fill(manager, notifier):
    """Send until the manager, which does not read, takes no more."""
    for number in range(100_000):
        if not notifier._send({"STATUS": str(number)}):
            return
    raise AssertionError("its queue has no end")


# -- the environment -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pid", [None, str(os.getpid())], ids=["no pid", "our pid"])
def test_the_address_and_the_watchdog_are_taken_out_of_the_environment(pid):
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "OTHER": "1"}
    if pid:
        environment["WATCHDOG_PID"] = pid
    assert ServiceManager.take(environment) == ServiceManager("/run/notify", PATIENCE)
    assert environment == {"OTHER": "1"}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "30s"},
        {"WATCHDOG_USEC": "3e7"},
        {"WATCHDOG_USEC": "1_000"},
        {"WATCHDOG_USEC": " 1000"},
        {"WATCHDOG_USEC": "٣٠٠٠٠٠٠"},
        {"WATCHDOG_USEC": str(2**64 - 1)},  # infinity
        {"WATCHDOG_USEC": str(2**64)},
        {"WATCHDOG_USEC": "9" * 5000},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "0"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "garbage"},
        {"WATCHDOG_USEC": "30000000", "NOTIFY_SOCKET": ""},
    ],
)
def test_without_a_watchdog_for_this_process_no_sign_of_life_is_sent(manager, variables):
    environment = {"NOTIFY_SOCKET": manager.variable} | variables
    notifier = Notifier(ServiceManager.take(environment))
    assert environment == {}
    notifier.note_turn(0.0)
    notifier.report_reload(within_s=120)
    assert notifier.next_at() == float("inf")
    (reloading,) = manager.unread() or [{"RELOADING": "1", "MONOTONIC_USEC": "1"}]
    assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
    notifier.close_in_child()


def test_no_manager_is_no_error(tmp_path):
    for address in ("", str(tmp_path / "missing"), "@flask-backend-nobody", "x" * 200, "vsock:2:1234"):
        notifier = Notifier(ServiceManager(address, PATIENCE))
        notifier.report_ready()
        notifier.show("fine")
        notifier.note_turn(0.0)
        notifier.report_reload(within_s=1)
        notifier.report_stop("stopping")
        notifier.note_turn_of_drain(0.0, end_by=1.0)
        notifier.report_end(1.0)
        notifier.close_in_child()


# -- the watchdog --------------------------------------------------------------------------------------------


def test_a_sign_of_life_is_sent_every_quarter_of_the_patience_though_it_equals_the_last_one(manager, notifier):
    sent_at = []
    for tenth in range(700):
        notifier.note_turn(tenth / 10)
        if manager.unread():
            sent_at.append(tenth / 10)
    assert sent_at == [0.0, 7.5, 15.0, 22.5, 30.0, 37.5, 45.0, 52.5, 60.0, 67.5]


def test_the_loop_wakes_up_for_the_watchdog_only_if_no_turn_came_before(manager, notifier):
    notifier.note_turn(100.0)
    assert notifier.next_at() == 115.0
    notifier.note_turn(101.0)
    assert notifier.next_at() == 115.0
    notifier.note_turn(108.0)
    assert notifier.next_at() == 123.0


@pytest.mark.parametrize("usec", [1, 1000, 100_000, 200_000])
def test_a_tiny_patience_does_not_make_a_busy_loop(manager, usec):
    notifier = Notifier(ServiceManager(manager.variable, usec))
    notifier.note_turn(5.0)
    assert 5.0 + LEAST_S <= notifier.next_at() <= 5.0 + max(LEAST_S, usec / 1e6 / 2) + usec / 1e6 / 4
    notifier.close_in_child()


def test_a_reload_extends_the_watchdog_until_the_first_turn_of_the_next_image(manager, notifier):
    before = time.monotonic_ns() // 1000
    notifier.report_reload(within_s=120)
    reloading = manager.next()
    assert before <= int(reloading.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert reloading == {"RELOADING": "1", "WATCHDOG": "1", "WATCHDOG_USEC": "150000000"}

    following = Notifier(notifier.manager)
    following.note_turn(500.0)
    following.note_turn(508.0)
    assert manager.unread() == [{"WATCHDOG": "1", "WATCHDOG_USEC": "30000000"}, {"WATCHDOG": "1"}]
    following.close_in_child()


def test_a_reload_that_the_system_refuses_restores_the_watchdog_with_the_next_turn(manager, notifier):
    notifier.note_turn(500.0)
    notifier.report_reload(within_s=120)
    notifier.report_ready()
    manager.unread()
    notifier.note_turn(500.1)
    assert manager.unread() == [{"WATCHDOG": "1", "WATCHDOG_USEC": "30000000"}]


# -- a drain -------------------------------------------------------------------------------------------------


def test_a_drain_extends_the_timeout_turn_by_turn_and_never_beyond_its_own(manager, notifier):
    begun, end_by = 1000.0, 1060.0
    promised = []
    for second in range(90):
        notifier.note_turn_of_drain(begun + second, end_by)
        promised += [(second, int(message["EXTEND_TIMEOUT_USEC"]) / 1e6) for message in manager.unread()]
    assert promised[0] == (0, EXTENSION_S)
    assert all(0 < for_s <= EXTENSION_S for _, for_s in promised)
    assert max(second + for_s for second, for_s in promised) == 60 + STOP_MARGIN_S
    # Each message comes long before the time that the one before has promised.
    for (second, for_s), (following, _) in itertools.pairwise(promised):
        assert following - second <= for_s / 2 or following >= 60


def test_a_stop_that_is_over_promises_nothing(manager, notifier):
    notifier.note_turn_of_drain(1000.0, end_by=1000.0 - STOP_MARGIN_S)
    notifier.report_end(-STOP_MARGIN_S)
    assert manager.unread() == []
    notifier.report_end(20.0)
    assert manager.unread() == [{"EXTEND_TIMEOUT_USEC": "25000000"}]


# -- state and status ----------------------------------------------------------------------------------------


def test_a_status_is_sent_only_when_it_has_changed(manager, notifier):
    for status in ("one", "one", "two", "two", "one"):
        notifier.show(status)
    assert [message["STATUS"] for message in manager.unread()] == ["one", "two", "one"]


def test_a_status_stays_one_line_of_text_that_the_manager_accepts(manager, notifier):
    notifier.show("failed: a\nMAINPID=1\r\x1b[31m \udcff č" + "é" * 5000)
    message = manager.next()
    assert message.keys() == {"STATUS"}
    assert message["STATUS"].startswith("failed: a MAINPID=1  [31m   čé")
    assert len(message["STATUS"]) == STATUS_CHARS
    assert len(message["STATUS"].encode()) < 4096 - len("STOPPING=1\nSTATUS=")


def test_a_stuck_manager_does_not_block_and_gets_the_last_state_and_status_later(manager, notifier):
    fill(manager, notifier)
    began = time.monotonic()
    notifier.report_ready()
    notifier.show("one")
    notifier.show("two")
    notifier.note_turn(0.0)
    assert notifier.next_at() > 0.0  # no busy loop
    notifier.report_stop("stopping")
    notifier.note_turn_of_drain(0.0, end_by=25.0)
    assert time.monotonic() - began < 5

    manager.unread()
    notifier.note_turn_of_drain(1.0, end_by=25.0)
    notifier.note_turn_of_drain(2.0, end_by=25.0)
    assert manager.unread() == [{"STOPPING": "1", "STATUS": "stopping"}, {"EXTEND_TIMEOUT_USEC": "10000000"}]


def test_a_state_that_could_not_be_sent_is_sent_with_the_next_turn(manager, notifier):
    fill(manager, notifier)
    notifier.show("one")
    notifier.report_ready()
    manager.unread()
    notifier.note_turn(0.0)
    sent, sign_of_life = manager.unread()
    assert sent == {"READY": "1", "STATUS": "one"}
    assert sign_of_life.keys() == {"WATCHDOG", "WATCHDOG_USEC"}


def test_a_sign_of_life_that_could_not_be_sent_is_tried_again_soon(manager, notifier):
    fill(manager, notifier)
    notifier.note_turn(0.0)
    manager.unread()
    assert notifier.next_at() <= PATIENCE / 1e6 / 3
    notifier.note_turn(notifier.next_at())
    assert manager.unread() == [{"WATCHDOG": "1", "WATCHDOG_USEC": str(PATIENCE)}]


def test_a_manager_that_comes_back_gets_the_state(tmp_path):
    manager = Manager(tmp_path)
    notifier = Notifier(ServiceManager(manager.variable, PATIENCE))
    manager.close()
    Path(manager.variable).unlink()
    notifier.report_ready()
    back = Manager(tmp_path)
    notifier.note_turn(0.0)
    assert back.unread()[0] == {"READY": "1"}
    back.close()
    notifier.close_in_child()


def test_no_descriptor_is_needed_to_send(manager, notifier, monkeypatch):
    def refuse(*_):
        raise OSError("too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    notifier.report_ready()
    assert manager.next() == {"READY": "1"}
