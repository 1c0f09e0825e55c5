"""Which POSTs come from the same site."""

from __future__ import annotations

import pytest

from flask_backend.dashboard.origin import find_fault


@pytest.mark.parametrize(
    ("fetch_site", "origin", "host"),
    [
        ("same-origin", None, "shop.example"),
        ("same-origin", "https://evil.example", "shop.example"),  # the browser has compared them, not the proxy
        (None, "http://shop.example", "shop.example"),
        (None, "https://shop.example", "shop.example"),  # a proxy has ended TLS
        (None, "https://shop.example:443", "shop.example:80"),
        (None, "http://shop.example:8080", "shop.example:8080"),
        (None, "http://[::1]:8080", "[::1]:8080"),
        (None, "http://SHOP.example", "shop.example"),
    ],
)
def test_a_request_of_the_same_site_is_taken(fetch_site, origin, host):
    assert find_fault(fetch_site, origin, "http", host) is None


@pytest.mark.parametrize(
    ("fetch_site", "origin", "host"),
    [
        ("cross-site", None, "shop.example"),
        ("same-site", None, "shop.example"),
        ("none", None, "shop.example"),
        ("", None, "shop.example"),
        ("cross-site", "http://shop.example", "shop.example"),
        (None, None, "shop.example"),
        (None, "null", "shop.example"),
        (None, "", "shop.example"),
        (None, "https://evil.example", "shop.example"),
        (None, "http://shop.example:81", "shop.example"),
        (None, "http://shop.example.evil.example", "shop.example"),
        (None, "http://shop.example@evil.example", "shop.example"),
        (None, "file://shop.example", "shop.example"),
        (None, "http://shop.example:x", "shop.example"),
        (None, "http://[", "shop.example"),
        (None, "null", ""),
        (None, "http://", ""),
    ],
)
def test_a_request_from_elsewhere_is_refused(fetch_site, origin, host):
    assert find_fault(fetch_site, origin, "http", host)


def test_a_proxy_that_rewrites_the_host_is_named_in_the_error():
    fault = find_fault(None, "https://shop.example", "http", "127.0.0.1:8000")
    assert "127.0.0.1:8000" in fault
    assert "ProxyFix" in fault
