from __future__ import annotations

import re

import pytest
from flask import Flask

from flask_backend import Backend, ConfigError
from flask_backend.config import Address, Settings


@pytest.mark.parametrize(
    ("uri", "host", "port"),
    [
        ("btq://localhost", "localhost", 11300),
        ("btq://localhost/", "localhost", 11300),
        ("btq://10.0.0.1:123", "10.0.0.1", 123),
        ("btq://queue_1.example.com:65535", "queue_1.example.com", 65535),
        ("btq://[::1]", "::1", 11300),
        ("btq://[fe80::1%eth0]:11301", "fe80::1%eth0", 11301),
    ],
)
def test_an_address_is_read(uri, host, port):
    assert Address.parse(uri) == Address(host, port)


@pytest.mark.parametrize("address", [Address(), Address("::1", 1), Address("example.com", 65535)])
def test_an_address_is_shown_as_it_is_read(address):
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "uri",
    ["redis://localhost", "btq:localhost", "btq://", "btq://::1:11300", "btq://h:0", "btq://h:65536", "btq://h:x",
     "btq://h/path", "btq://user@h", "btq://h h", "btq://h\n", "btq://h\0x", "btq://h\x1b[m", b"btq://h", 11300],
)  # fmt: skip
def test_an_invalid_address_raises_at_init_app_and_shows_what_is_expected(uri):
    app = Flask("app")
    app.config["BACKEND_CONNECTION_URI"] = uri
    with pytest.raises(ConfigError, match=r"BACKEND_CONNECTION_URI is .*; expected btq://HOST"):
        Backend(app)


@pytest.mark.parametrize("host", [".internal", "a..b", "x" * 64, "a." + "x" * 64 + ".b", "\udcff", "\xad"])
def test_a_host_name_that_cannot_be_encoded_raises_at_init_app(host):
    app = Flask("app")
    app.config["BACKEND_CONNECTION_URI"] = f"btq://{host}:11300"
    with pytest.raises(ConfigError, match=r"BACKEND_CONNECTION_URI is .*; expected a valid host name"):
        Backend(app)


@pytest.mark.parametrize("host", ["x" * 63, "LOCALHOST.", "b\xfccher.example", "a_b", "1", "*"])
def test_other_host_names_are_left_to_the_resolver(host):
    assert Address.parse(f"btq://{host}").host == host


def test_the_config_comes_before_the_environment_and_that_before_the_default(monkeypatch):
    monkeypatch.delenv("BACKEND_CONNECTION_URI", raising=False)
    assert str(Settings.from_config({}).address) == "btq://127.0.0.1:11300"
    monkeypatch.setenv("BACKEND_CONNECTION_URI", "btq://from-env")
    assert Settings.from_config({}).address.host == "from-env"
    assert Settings.from_config({"BACKEND_CONNECTION_URI": "btq://from-config"}).address.host == "from-config"


@pytest.mark.parametrize("key", ["BACKEND_TTR", "BACKEND_TIMEOUT"])
@pytest.mark.parametrize("value", ["5", 0, -1, 2**32, True, None])
def test_an_invalid_number_names_its_key(key, value):
    with pytest.raises(ConfigError, match=f"{key} is {value!r}; expected"):
        Settings.from_config({key: value})


def test_links_of_the_dashboard_have_a_place_for_the_name():
    config = {"BACKEND_DASHBOARD_METRICS_URL": "https://example.com/?q={queue}&{x}"}
    link = Settings.from_config(config).metrics_link
    assert link.to("a/b&c") == "https://example.com/?q=a%2Fb%26c&{x}"
    assert Settings.from_config({}).trace_link is None
    for key, value in {
        "BACKEND_DASHBOARD_METRICS_URL": "https://example.com",
        "BACKEND_DASHBOARD_TRACE_URL": "javascript:alert({trace})",
    }.items():
        with pytest.raises(ConfigError, match=rf"{key} is '{re.escape(value)}'; expected a URL with"):
            Settings.from_config({key: value})
