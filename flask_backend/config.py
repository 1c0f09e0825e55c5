"""The settings of the extension: the name, type, default and meaning of each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from typing import Any, cast
from urllib.parse import SplitResult, quote, urlsplit

from .durations import MAX_SECONDS
from .errors import ConfigError
from .masking import DEFAULT_MASK, Mask, has_letters
from .retry import DEFAULT_RETRY, Retry
from .zones import check_zone

URI_KEY = "BACKEND_CONNECTION_URI"
BASE_URL_KEY = "BACKEND_BASE_URL"
AFTER_COMMIT_KEY = "BACKEND_AFTER_COMMIT"
TIMEZONE_KEY = "BACKEND_TIMEZONE"
MASK_KEY = "BACKEND_MASK"
METRICS_URL_KEY = "BACKEND_DASHBOARD_METRICS_URL"
TRACE_URL_KEY = "BACKEND_DASHBOARD_TRACE_URL"
KEYS = (
    *(URI_KEY, "BACKEND_TTR", "BACKEND_TIMEOUT", "BACKEND_RETRY", BASE_URL_KEY, AFTER_COMMIT_KEY, TIMEZONE_KEY),
    *(MASK_KEY, METRICS_URL_KEY, TRACE_URL_KEY),
)
DEFAULT_PORT = 11300  # beanstalkd's default
_URI = re.compile(
    r"btq://(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^\s\x00-\x1f\x7f/:@\[\]]+))(?::(?P<port>\d{1,5}))?/?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Address:
    """The address of the broker."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"btq://{host}:{self.port}"

    @classmethod
    def parse(cls, uri: object) -> Address:
        """Read ``btq://host[:port]``; raise :exc:`ConfigError`, which names the setting and the valid forms."""
        match = _URI.fullmatch(uri) if isinstance(uri, str) else None
        port = int(match["port"] or DEFAULT_PORT) if match else 0
        if match is None or not 0 < port < 2**16:
            raise ConfigError(
                f"{URI_KEY} is {uri!r}; expected btq://HOST or btq://HOST:PORT, "
                "for example btq://127.0.0.1:11300 or btq://[::1]:11300; in tests memory:// or sync://"
            )
        return cls(match["v6"] or _check_host(uri, match["host"]), port)


def _check_host(uri: object, host: str) -> str:
    """Return a host name that the resolver accepts: it uses the same encoding."""
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ConfigError(
            f"{URI_KEY} is {uri!r}; expected a valid host name: its parts between dots have 1 to 63 "
            f"characters ({error.__cause__ or error})"
        ) from error
    return host


class StandIn(Enum):
    """A substitute for the broker in tests, by its URI; see :mod:`flask_backend.testing`."""

    MEMORY = "memory://"
    SYNC = "sync://"

    def __str__(self) -> str:
        return self.value


def parse_broker(uri: object) -> Address | StandIn:
    """Read the address of a broker, or the URI of a stand-in; raise :exc:`ConfigError` for any other value."""
    return next((each for each in StandIn if each.value == uri), None) or Address.parse(uri)


@dataclass(frozen=True, slots=True)
class Link:
    """A URL with a place for a name."""

    url: str
    place: str

    def to(self, name: str) -> str:
        return self.url.replace(self.place, quote(name, safe=""))


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that ``init_app`` reads from ``app.config``.

    ``BACKEND_CONNECTION_URI`` (``btq://127.0.0.1:11300``)
        The address of Beanstalkd: ``btq://host[:port]``, an IPv6 address in brackets; in tests ``memory://`` or
        ``sync://``. Without the key, the environment variable of the same name is used.
    ``BACKEND_TTR`` (``120``)
        The whole seconds that a worker may be silent before Beanstalkd gives its job to another. Workers touch their
        job while it runs, so this does not limit how long a task may run.
    ``BACKEND_TIMEOUT`` (``5``)
        The seconds to wait for a connection to Beanstalkd, and for each answer.
    ``BACKEND_RETRY`` (``Retry()``)
        The policy of tasks and receivers without their own ``retry``: a :class:`~flask_backend.Retry`, or a mapping of
        its numbers such as ``{"max_retries": 5}``. From the environment, with ``app.config.from_prefixed_env()``:
        ``FLASK_BACKEND_RETRY__max_retries=5``.
    ``BACKEND_BASE_URL`` (``None``)
        The URL of the app's pages, such as ``https://example.com`` or ``https://example.com/shop``. With it,
        :func:`flask.url_for` works in tasks, receivers and hooks, and returns external URLs.
    ``BACKEND_AFTER_COMMIT`` (``None``)
        With ``"sqlalchemy"``, a call that is made while the session of Flask-SQLAlchemy has changes that are not
        committed waits for the commit, as with the option ``after_commit=db.session``.
    ``BACKEND_TIMEZONE`` (``"UTC"``)
        The time zone of cron expressions without a ``timezone`` of their own, by its IANA name, such as
        ``"Europe/Prague"``.
    ``BACKEND_MASK`` (``("password", "passwd", "passphrase", "secret", "token", "api_key", "private_key", …)``)
        The words that make a name secret: values whose name contains one of them, in any case, are shown as ``***`` in
        stories, by the commands and in the dashboard. Names are those of arguments and of keys in messages, headers and
        checkpoints, at any depth, and of the parameters of the task for positional arguments, where the app is loaded.
        The setting replaces the default, which also has ``authorization``, ``cookie`` and ``credential``; ``()`` hides
        nothing. The jobs themselves are not changed, nor are the messages of exceptions.
    ``BACKEND_DASHBOARD_METRICS_URL`` (``None``)
        Where the metrics of a queue are, for a link on its page of the dashboard: a URL with ``{queue}``, such as
        ``https://grafana.example.com/d/queues?var-queue={queue}``.
    ``BACKEND_DASHBOARD_TRACE_URL`` (``None``)
        Where a trace is, for a link on the page of a job whose call carries one: a URL with ``{trace}``, such as
        ``https://jaeger.example.com/trace/{trace}``.
    """

    broker: Address | StandIn = Address()
    ttr_s: int = 120
    timeout_s: float = 5.0
    retry: Retry = DEFAULT_RETRY
    base_url: SplitResult | None = None
    waits_for_commit: bool = False
    timezone: str = "UTC"
    mask: Mask = DEFAULT_MASK
    metrics_link: Link | None = None
    trace_link: Link | None = None

    @property
    def address(self) -> Address:
        """The address to connect to. Raises :exc:`ConfigError` if the broker is a stand-in for tests."""
        if isinstance(self.broker, StandIn):
            raise ConfigError(
                f"{URI_KEY} is {self.broker}, which is a stand-in for tests, not a broker to connect to. "
                f"Set it to the address of a real broker, for example {_DEFAULTS.broker}"
            )
        return self.broker

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        uri = config.get(URI_KEY) or os.environ.get(URI_KEY)
        return cls(
            broker=parse_broker(uri) if uri is not None else _DEFAULTS.broker,
            ttr_s=_whole(config, "BACKEND_TTR", _DEFAULTS.ttr_s),
            timeout_s=_positive(config, "BACKEND_TIMEOUT", _DEFAULTS.timeout_s),
            retry=Retry.from_setting("BACKEND_RETRY", config.get("BACKEND_RETRY", _DEFAULTS.retry)),
            base_url=_base_url(config.get(BASE_URL_KEY)),
            waits_for_commit=_after_commit(config.get(AFTER_COMMIT_KEY)),
            timezone=_timezone(config.get(TIMEZONE_KEY)),
            mask=_mask(config.get(MASK_KEY, _DEFAULTS.mask.words)),
            metrics_link=_link(METRICS_URL_KEY, config.get(METRICS_URL_KEY), "queue"),
            trace_link=_link(TRACE_URL_KEY, config.get(TRACE_URL_KEY), "trace"),
        )


def _base_url(value: object) -> SplitResult | None:
    if value is None:
        return None
    try:
        url = urlsplit(value) if isinstance(value, str) and value.isprintable() and " " not in value else None
        is_right = (
            url is not None
            and url.scheme in ("http", "https")
            and url.hostname
            and (url.port is None or url.port > 0)
            and "@" not in url.netloc
            and not url.query
            and not url.fragment
        )
    except ValueError:  # an invalid port or IPv6 address
        url, is_right = None, False
    if url is None or not is_right:
        raise ConfigError(
            f"{BASE_URL_KEY} is {value!r}; expected http:// or https:// with a host, and a path if the app is mounted "
            "under one, for example https://example.com or https://example.com/shop"
        )
    return url


def _after_commit(value: object) -> bool:
    if value not in (None, "sqlalchemy"):
        raise ConfigError(f'{AFTER_COMMIT_KEY} is {value!r}; expected "sqlalchemy", or None')
    if value is not None and find_spec("sqlalchemy") is None:
        raise ConfigError(f"{AFTER_COMMIT_KEY} is {value!r}, but SQLAlchemy is not installed: install Flask-SQLAlchemy")
    return value is not None


def _timezone(value: object) -> str:
    try:
        return _DEFAULTS.timezone if value is None else check_zone(value)
    except ValueError as error:
        raise ConfigError(f"{TIMEZONE_KEY} is {error}") from None


def _mask(value: object) -> Mask:
    words = tuple(cast("Iterable[object]", value)) if isinstance(value, list | tuple | set | frozenset) else None
    if words is None or not all(map(has_letters, words)):
        raise ConfigError(f'{MASK_KEY} is {value!r}; expected words, for example ("password", "token"), or () for none')
    return Mask(tuple(cast("Iterable[str]", words)))


def _link(key: str, value: object, name: str) -> Link | None:
    if value is None:
        return None
    place = f"{{{name}}}"
    if not isinstance(value, str) or not value.startswith(("http://", "https://", "/")) or place not in value:
        raise ConfigError(f"{key} is {value!r}; expected a URL with {place}, such as https://example.com/?q={place}")
    return Link(value, place)


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SECONDS:
        raise ConfigError(f"{key} is {value!r}; expected whole seconds from 1 to {MAX_SECONDS}")
    return value


def _positive(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < MAX_SECONDS:
        raise ConfigError(f"{key} is {value!r}; expected seconds, more than 0")
    return float(value)


_DEFAULTS = Settings()
