"""Settings that an app sets after they were read."""

from __future__ import annotations

import pytest
from flask import Flask

from flask_backend import Backend, ConfigError

QUEUE = "com.example/default"


@pytest.fixture
def app():
    app = Flask("shop")
    app.config.update(BACKEND_CONNECTION_URI="memory://", BACKEND_TTR=60)
    return app


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("BACKEND_CONNECTION_URI", "btq://queue.internal"),
        ("BACKEND_TTR", "sixty"),
        ("BACKEND_TIMEOUT", 1),
        ("BACKEND_RETRY", {"max_retries": 1}),
        ("BACKEND_BASE_URL", "https://example.com"),
    ],
)
def test_a_setting_that_comes_after_the_backend_is_named_at_the_first_call(app, key, value):
    backend = Backend(app)
    hello = backend.task(QUEUE, "hello")(print)
    app.config[key] = value
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"^{key} was set to .* after Backend\(app\) .* app 'shop', and has no"):
            hello()
    with pytest.raises(ConfigError, match=key):
        backend.settings_of(app)


def test_a_setting_that_is_removed_again_is_not_an_error(app):
    backend = Backend(app)
    app.config["BACKEND_TIMEOUT"] = 1
    del app.config["BACKEND_TIMEOUT"]
    assert backend.settings_of(app).timeout_s == 5


def test_other_settings_may_come_later(app):
    hello = Backend(app).task(QUEUE, "hello")(print)
    app.config["MAX_CONTENT_LENGTH"] = 1
    assert hello().id == 1


def test_settings_may_come_before_init_app(app):
    backend = Backend()
    app.config["BACKEND_TTR"] = 7
    backend.init_app(app)
    assert backend.settings_of(app).ttr_s == 7
