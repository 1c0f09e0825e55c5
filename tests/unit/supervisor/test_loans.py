from __future__ import annotations

import os
import socket

import pytest

from flask_backend.supervisor.loans import Loans


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def loans():
    loans = Loans()
    yield loans
    loans.close_all()


def lend_from_child(loans: Loans, *sockets: socket.socket) -> int:
    pid = os.fork()
    if pid == 0:
        for sock in sockets:
            loans.lend(sock.fileno())
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_loan_stays_open_when_its_child_is_gone(pair, loans):
    ours, theirs = pair
    pid = lend_from_child(loans, ours)
    loans.receive()
    ours.close()
    theirs.sendall(b"still there")
    with socket.socket(fileno=os.dup(loans.get(pid))) as kept:
        assert kept.recv(100) == b"still there"
    loans.close(pid)
    assert theirs.recv(1) == b""
    assert loans.get(pid) is None


def test_only_the_last_loan_of_a_child_is_kept(pair, loans):
    ours, _ = pair
    first, first_peer = socket.socketpair()
    pid = lend_from_child(loans, first, ours)
    loans.receive()
    first.close()
    assert first_peer.recv(1) == b""
    first_peer.close()
    loans.close(pid)


def test_a_new_child_closes_the_loans_of_the_others_except_the_one_it_keeps(pair, loans):
    ours, _ = pair
    pids = [lend_from_child(loans, ours), lend_from_child(loans, ours)]
    loans.receive()
    kept = loans.get(pids[1])
    loans.close_in_child(keep=pids[1])
    assert loans.get(pids[0]) is None
    os.fstat(kept)
    loans.close(pids[1])


def test_a_supervisor_that_does_not_listen_does_not_delay_a_child(pair, loans):
    ours, _ = pair
    lend_from_child(loans, *[ours] * 2000)
    loans.receive()
    for pid in list(loans._lent):
        loans.close(pid)
