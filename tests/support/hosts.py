"""Hosts that can vanish: network namespaces of one machine, joined by a bridge."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from support.beanstalkd import Beanstalkd

T = TypeVar("T")

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of sched.h

# The timer that the kernel runs for a connection, by its number in /proc/net/tcp.
_TIMERS = {0: "none", 1: "retransmit", 2: "keepalive", 3: "time wait", 4: "probe"}
_ESTABLISHED = 1


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library that returns 0; Python has these two only from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


def _in_a_thread(function: Callable[[], T]) -> T:
    """Call it in a thread of its own, which may change its namespace, as only threads have one each."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def _new_namespace() -> int:
    _call("unshare", _NEW_NETWORK)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Host:
    """A host with a network, sysctls and connections of its own. It lives until it is closed and its processes end."""

    def __init__(self) -> None:
        self._namespace = _in_a_thread(_new_namespace)
        self.path = f"/proc/{os.getpid()}/fd/{self._namespace}"
        self.address = ""
        self.run("ip", "link", "set", "lo", "up")

    @property
    def under(self) -> list[str]:
        """The beginning of a command that runs on this host. The process keeps its pid."""
        return ["nsenter", f"--net={self.path}"]

    def run(self, *command: str) -> str:
        return subprocess.run([*self.under, *command], check=True, capture_output=True, text=True).stdout

    def call(self, function: Callable[[], T]) -> T:
        """Call a function on this host, in this process."""

        def enter() -> T:
            _call("setns", self._namespace, _NEW_NETWORK)
            return function()

        return _in_a_thread(enter)

    def set(self, **sysctls: int) -> None:
        """Set sysctls of ``net.ipv4``."""

        def write() -> None:
            for name, value in sysctls.items():
                Path(f"/proc/sys/net/ipv4/{name}").write_text(str(value))

        self.call(write)

    def connect(self, address: str, port: int) -> socket.socket:
        return self.call(lambda: socket.create_connection((address, port)))

    def timers(self, peer: str) -> list[tuple[str, float]]:
        """Return the timer of each established connection to a peer, and its seconds."""
        ticks = os.sysconf("SC_CLK_TCK")
        found = []
        for line in self.call(lambda: Path("/proc/thread-self/net/tcp").read_text()).splitlines()[1:]:
            _, _, remote, state, _, timer = line.split()[:6]
            kind, _, left = timer.partition(":")
            if int(state, 16) == _ESTABLISHED and _address(remote) == peer:
                found.append((_TIMERS[int(kind, 16)], int(left, 16) / ticks))
        return found

    def close(self) -> None:
        os.close(self._namespace)


def _address(text: str) -> str:
    return socket.inet_ntoa(bytes.fromhex(text.partition(":")[0])[::-1])


class Network:
    """A switch and the hosts that are plugged into it."""

    def __init__(self) -> None:
        self._hosts: list[Host] = []
        if not all(shutil.which(tool) for tool in ("ip", "nsenter")):
            pytest.skip("needs ip and nsenter")
        try:
            self._switch = self._new_host()
            self._switch.run("ip", "link", "add", "switch", "up", "type", "bridge")
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")

    def _new_host(self) -> Host:
        self._hosts.append(host := Host())
        return host

    def add(self) -> Host:
        """Add a host, plug it in, and return it."""
        host = self._new_host()
        number = len(self._hosts)
        host.address = f"10.0.0.{number}"
        plug = f"to-{host.address}"
        self._switch.run("ip", "link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", host.path)
        self._switch.run("ip", "link", "set", plug, "master", "switch", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        return host

    def cut(self, host: Host) -> None:
        """Pull the plug: from now on no packet reaches the host or leaves it."""
        self._switch.run("ip", "link", "set", f"to-{host.address}", "down")

    def mend(self, host: Host) -> None:
        self._switch.run("ip", "link", "set", f"to-{host.address}", "up")

    def close(self) -> None:
        for host in self._hosts:
            host.close()


class RemoteBeanstalkd(Beanstalkd):
    """A server on another host."""

    def __init__(self, at: Host) -> None:
        self.at = at
        self.host = at.address
        self.under = at.under
        super().__init__()

    def address(self) -> socket.socket:
        return self.at.connect(self.host, self.port)
