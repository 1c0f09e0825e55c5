"""The address of --metrics, and the socket there."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from flask_backend.metrics.endpoint import Endpoint, EndpointError, Listener

HAS_IPV6 = socket.has_dualstack_ipv6()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("9464", "127.0.0.1", 9464),
        (":9464", "127.0.0.1", 9464),
        ("0.0.0.0:9464", "0.0.0.0", 9464),  # noqa: S104  # nothing is bound here
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
        ("[::]:9464", "::", 9464),
        ("[fe80::1%eth0]:9464", "fe80::1%eth0", 9464),
    ],
)
def test_a_port_alone_is_on_the_loopback_interface(text, host, port):
    endpoint = Endpoint.parse(text)
    assert (endpoint.host, endpoint.port, endpoint.path) == (host, port, None)
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "65536", "-1", "1.5", "host", "host:", "host:x", "::1:80", "[::1]", "[::1]80"),
        *("http://h:80", "a b:80", "h:80/m", "9464 ", "\u0663", "h:\u0663"),
        *("unix:", "unix:relative", "unix:/a\0b", "unix:/" + "x" * 200),
    ],
)
def test_anything_else_is_refused_with_the_forms(text):
    with pytest.raises(
        EndpointError, match=r"is not an address: expected|too long: a unix socket has at most 107 bytes"
    ):
        Endpoint.parse(text)


def connect(listener: Listener) -> None:
    family = listener.socket.family
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.connect(listener.socket.getsockname())
        listener.socket.setblocking(True)
        listener.socket.accept()[0].close()


needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="needs IPv6")


@pytest.mark.parametrize("text", ["127.0.0.1:0", "localhost:0", pytest.param("[::1]:0", marks=needs_ipv6)])
def test_any_free_port_is_taken_and_shown(text):
    listener = Endpoint.parse(text).listen()
    try:
        connect(listener)
        host, port = listener.socket.getsockname()[:2]
        assert (listener.key, listener.url.endswith(f":{port}/metrics")) == (text, True)
        with pytest.raises(EndpointError, match=r"Address already in use; stop the program that listens there"):
            Endpoint(host, port).listen()
    finally:
        listener.close()


@needs_ipv6
def test_all_addresses_of_ipv6_include_those_of_ipv4():
    listener = Endpoint.parse("[::]:0").listen()
    try:
        with socket.create_connection(("127.0.0.1", listener.socket.getsockname()[1])):
            listener.socket.setblocking(True)
            listener.socket.accept()[0].close()
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("192.0.2.1:0", "this host does not have that address"),
        ("no-such-host.invalid:0", "cannot serve metrics on no-such-host.invalid:0: "),
        (f"{'x' * 64}.example:0", "cannot serve metrics on"),
        ("unix:/no/such/folder/socket", "No such file or directory"),
    ],
)
def test_an_address_that_cannot_be_used_is_named_with_the_reason(text, reason):
    with pytest.raises(EndpointError, match=reason):
        Endpoint.parse(text).listen()


def test_a_unix_socket_is_for_its_user_and_group_and_removed_at_the_end(tmp_path):
    path = tmp_path / "metrics"
    listener = Endpoint.parse(f"unix:{path}").listen()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    connect(listener)
    with pytest.raises(EndpointError, match="Address already in use"):
        Endpoint.parse(f"unix:{path}").listen()
    listener.close()
    assert not path.exists()


def test_a_socket_that_a_killed_supervisor_has_left_is_replaced(tmp_path):
    path = tmp_path / "metrics"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    listener = Endpoint.parse(f"unix:{path}").listen()
    connect(listener)
    listener.close()


def test_one_with_a_full_backlog_is_alive(tmp_path):
    path = str(tmp_path / "metrics")
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen(0)
        waiting = []
        try:
            while True:
                waiting.append(client := socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(path)
        except BlockingIOError:
            pass
        with pytest.raises(EndpointError, match="Address already in use"):
            Endpoint.parse(f"unix:{path}").listen()
        for client in waiting:
            client.close()


@pytest.mark.parametrize("make", [os.mkdir, lambda path: os.close(os.open(path, os.O_CREAT))])
def test_a_file_of_another_kind_is_left_alone(tmp_path, make):
    path = tmp_path / "metrics"
    make(path)
    with pytest.raises(EndpointError, match="there is a file of another kind"):
        Endpoint.parse(f"unix:{path}").listen()
    assert path.exists()
