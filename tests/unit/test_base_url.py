"""BACKEND_BASE_URL makes url_for work outside of a request."""

from __future__ import annotations

import traceback

import pytest
from flask import Flask, has_request_context, url_for

from flask_backend import Backend, ConfigError, testing


def make(uri: str, **config) -> tuple[Flask, Backend, list[str]]:
    app = Flask("app")
    app.config.update(BACKEND_CONNECTION_URI=uri, **config)
    backend, urls = Backend(app), []

    def note():
        assert not has_request_context()
        urls.append(url_for("page", name="Ada"))

    backend.before_first_task("q")(note)
    backend.task("q", "plain")(note)

    @backend.task("q", "later")
    async def later():
        note()

    backend.receiver("inbox")(lambda message: note())
    app.add_url_rule("/page/<name>", "page")  # after the Backend, like most pages of an app
    return app, backend, urls


@pytest.mark.parametrize("uri", ["memory://", "sync://"])
@pytest.mark.parametrize(
    ("base_url", "page"),
    [
        ("https://example.com", "https://example.com/page/Ada"),
        ("http://example.com:8080/", "http://example.com:8080/page/Ada"),
        ("https://example.com/shop", "https://example.com/shop/page/Ada"),
        ("http://[::1]:5000/a/b/", "http://[::1]:5000/a/b/page/Ada"),
    ],
)
def test_url_for_works_in_tasks_receivers_and_hooks(uri, base_url, page):
    app, backend, urls = make(uri, BACKEND_BASE_URL=base_url, SERVER_NAME="ignored.example")
    for endpoint in ("plain", "later"):
        backend.put("q", b'{"endpoint": "%s"}' % endpoint.encode(), *_options())
    backend.send("inbox", 1)
    testing.drain(app)
    assert urls == [page] * 4


def test_without_it_flasks_own_setting_counts():
    _, backend, urls = make("sync://", SERVER_NAME="example.org")
    backend.send("inbox", 1)
    assert urls == ["http://example.org/page/Ada"]


def test_without_either_the_error_names_the_setting():
    app, backend, _ = make("memory://")
    backend.send("inbox", 1)
    [ran] = testing.drain(app, raise_errors=False)
    assert "url_for needs the setting BACKEND_BASE_URL" in "".join(traceback.format_exception(ran.error))


@pytest.mark.parametrize(
    "url",
    ["example.com", "/shop", "ftp://example.com", "https://", "https://h:x", "https://h:0", "https://h:99999", "https://h/?a=1",
     "https://h/#a", "https://u:p@h", "https://h h", "https://h\n", "https://[::1", 5, b"https://h", ""],
)  # fmt: skip
def test_an_invalid_url_raises_at_init_app(url):
    with pytest.raises(ConfigError, match=r"BACKEND_BASE_URL is .*; expected http:// or https:// with a host"):
        make("memory://", BACKEND_BASE_URL=url)


def _options():
    from flask_backend.options import DEFAULTS

    return DEFAULTS, None
