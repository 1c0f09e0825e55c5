"""Where metrics are served: the address, and the listening socket, which the supervisor opens and a reload keeps."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

_LOOPBACK = "127.0.0.1"
# How many scrapes wait while no helper accepts them, such as during the import of a reload.
_BACKLOG = 64
# Of sockaddr_un, see unix(7): on Linux without its end.
_MAX_PATH_BYTES = 107
_TCP = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^\s:/\[\]]*)):(?P<port>\d{1,5})", re.ASCII)
_FORMS = "expected PORT or HOST:PORT, such as 9464 or 0.0.0.0:9464 or [::]:9464, or unix:/PATH"


class EndpointError(Exception):
    """The address cannot be used."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to serve metrics on: of TCP, or with a ``path`` of a unix socket."""

    host: str = _LOOPBACK
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``PORT``, ``HOST:PORT`` or ``unix:/PATH``; a port alone is on the loopback interface.

        Port 0 takes any free one. Raises :exc:`EndpointError`.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path.startswith("/") or "\0" in path:
                raise EndpointError(f"{text!r} is not an address: expected unix: and an absolute path")
            if len(os.fsencode(path)) > _MAX_PATH_BYTES:
                raise EndpointError(
                    f"the path in {text!r} is too long: a unix socket has at most {_MAX_PATH_BYTES} bytes"
                )
            return cls(path=path)
        found = _TCP.fullmatch(text if ":" in text else f":{text}")
        if found is None or int(found["port"]) >= 2**16:
            raise EndpointError(f"{text!r} is not an address: {_FORMS}")
        return cls(found["v6"] or found["host"] or _LOOPBACK, int(found["port"]))

    def listen(self) -> Listener:
        """Open the socket; raise :exc:`EndpointError` with the reason."""
        try:
            return Listener(self, self._listen_at_path(self.path) if self.path else self._listen_at_port())
        except (OSError, UnicodeError) as error:  # the latter from the name of a host
            raise EndpointError(f"cannot serve metrics on {self}: {_reason(error)}") from error

    def _listen_at_port(self) -> socket.socket:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        takes_both = self.host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=takes_both)

    @staticmethod
    def _listen_at_path(path: str) -> socket.socket:
        _remove_left_over(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            mask = os.umask(0o117)  # its user and group may connect
            try:
                listening.bind(path)
            finally:
                os.umask(mask)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        return listening


_REASONS = {errno.EEXIST: "there is a file of another kind"}
_HINTS = {
    errno.EADDRINUSE: "; stop the program that listens there, or choose another address",
    errno.EADDRNOTAVAIL: "; this host does not have that address",
}


def _reason(error: OSError | UnicodeError) -> str:
    number = error.errno or 0 if isinstance(error, OSError) else 0
    if number <= 0:  # of a lookup of a name
        return str(error)
    return f"{_REASONS.get(number) or os.strerror(number)}{_HINTS.get(number, '')}"


def _remove_left_over(path: str) -> None:
    """Remove a socket without a listener, such as that of a killed supervisor."""
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise FileExistsError(errno.EEXIST, path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is a sign of life, too
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108  # a path of the user's, as it is
        except BlockingIOError:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


class Listener:
    """A listening socket of an endpoint."""

    def __init__(self, endpoint: Endpoint, listening: socket.socket) -> None:
        self.endpoint = endpoint
        self.socket = listening
        listening.setblocking(False)

    @classmethod
    def adopt(cls, endpoint: Endpoint, fd: int) -> Self:
        """Take over the socket that an earlier image of this process opened."""
        return cls(endpoint, socket.socket(fileno=fd))

    @property
    def key(self) -> str:
        """The endpoint as text: a reload keeps the socket if it is the same."""
        return str(self.endpoint)

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def url(self) -> str:
        """Where to scrape, with the port that the system chose for port 0."""
        if self.endpoint.path is not None:
            return f"{self.endpoint}, path /metrics"
        host, port = self.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def close(self) -> None:
        """Close the socket, and remove its path."""
        self.socket.close()
        if self.endpoint.path is not None:
            with suppress(OSError):
                os.unlink(self.endpoint.path)  # noqa: PTH108  # likewise
