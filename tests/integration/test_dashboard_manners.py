"""The dashboard among what apps of Flask use: extensions, prefixes, proxies, and settings of Jinja."""

from __future__ import annotations

import base64
import logging
import re
from html import unescape

import flask
import jinja2
import pytest
from flask import Blueprint, Flask, abort, request
from flask_httpauth import HTTPBasicAuth
from flask_login import LoginManager, UserMixin, current_user, login_user
from flask_talisman import Talisman
from flask_wtf import CSRFProtect
from itsdangerous import URLSafeTimedSerializer
from support.dashboards import OWN, Form, allow, answer_form, make_app
from support.stories import bury_many
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from flask_backend import Backend, RegistrationError
from flask_backend.config import Settings, parse_broker
from flask_backend.dashboard import Dashboard

pytestmark = pytest.mark.any_broker

PAUSE = {"queue": "mail", "seconds": "60"}
NOT_FOUND = "/backend/queue?queue=none"


@pytest.fixture
def uri(broker):
    broker.put("mail", b'{"endpoint": "welcome", "args": ["ann"]}')
    return broker.uri


def notice(text: str, key: str = "") -> str:
    """Return the cookie with a notice, signed by an app with this key."""
    return URLSafeTimedSerializer(key.encode(), salt="flask_backend_notice").dumps(text)


def status_of(client, path, **options) -> int:
    """Return the status of a file, which is closed."""
    with client.get(path, **options) as answer:
        return answer.status_code


# -- who may ---------------------------------------------------------------------------------------------------


class User(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


@pytest.fixture
def logins(uri):
    """An app whose users log in at /login/NAME, with Flask-Login; "root" may do all, others may view."""
    manager = LoginManager()

    def may(action, what):
        if not current_user.is_authenticated:
            return manager.unauthorized()
        return action == "view" or current_user.get_id() == "root"

    app = make_app(uri, may, config={"SECRET_KEY": "s"}, user=lambda: current_user.id)
    manager.init_app(app)
    manager.login_view = "login"
    manager.user_loader(User)
    app.add_url_rule("/login", "login", lambda: "who?")
    app.add_url_rule("/login/<name>", "enter", lambda name: str(login_user(User(name))))
    return app


def test_with_flask_login_a_stranger_is_sent_to_the_login_of_the_app(logins):
    client = logins.test_client()
    answer = client.get("/backend/queue?queue=mail")
    assert (answer.status_code, answer.location.partition("?")[0]) == (302, "/login")
    assert client.post("/backend/queue/pause", data=PAUSE, headers=OWN).status_code == 302
    assert client.get("/backend/queue.json?queue=mail").status_code == 302


def test_with_flask_login_each_action_has_its_own_right_and_its_user_is_recorded(logins):
    client = logins.test_client()
    client.get("/login/ann")
    page = client.get("/backend/queue?queue=mail")
    assert (page.status_code, "<form" in page.text) == (200, False)
    assert client.post("/backend/queue/pause", data=PAUSE, headers=OWN).status_code == 403
    client.get("/login/root")
    page = client.get("/backend/queue?queue=mail").text
    assert answer_form(client, page, "/queue/pause", seconds="60").status_code == 303
    [action] = client.get("/backend/actions.json").json["actions"]
    assert (action["user"], action["what"]) == ("root", "paused mail for 1m")


def test_with_flask_httpauth_the_browser_asks_for_the_password(uri):
    auth = HTTPBasicAuth()
    auth.verify_password(lambda name, password: name if (name, password) == ("ann", "p") else None)
    app = make_app(uri, lambda action, what: auth.login_required(lambda: True)(), user=auth.current_user)
    client = app.test_client()
    answer = client.get("/backend/")
    assert (answer.status_code, "Basic" in answer.headers["WWW-Authenticate"]) == (401, True)
    known = {"Authorization": f"Basic {base64.b64encode(b'ann:p').decode()}"}
    page = client.get("/backend/queue?queue=mail", headers=known).text
    form = Form(page, "/queue/pause")
    assert client.post(form.action, data=PAUSE, headers={**OWN, **known}).status_code == 303
    assert client.get("/backend/actions.json", headers=known).json["actions"][0]["user"] == "ann"
    wrong = {"Authorization": f"Basic {base64.b64encode(b'ann:q').decode()}"}
    assert client.post(form.action, data=PAUSE, headers={**OWN, **wrong}).status_code == 401


def test_authorize_may_be_async_abort_and_depend_on_what_it_is_about(uri):
    async def may(action, what):
        if request.headers.get("X-Who") is None:
            abort(401)
        return action == "view" or what.get("queue") == "news"

    client = make_app(uri, may).test_client()
    assert client.get("/backend/").status_code == 401
    who = {"X-Who": "ann"}
    assert "<form" not in client.get("/backend/queue?queue=mail", headers=who).text
    answer = client.post("/backend/queue/pause", data=PAUSE, headers={**OWN, **who})
    assert answer.status_code == 403


def test_a_failing_name_of_the_user_does_not_hide_the_act(uri, caplog):
    def user():
        raise LookupError("no session")

    client = make_app(uri, user=user).test_client()
    with caplog.at_level(logging.INFO, "flask_backend.audit"):
        assert client.post("/backend/queue/pause", data=PAUSE, headers=OWN).status_code == 303
    assert "unknown (no session): paused mail for 1m" in caplog.text
    assert caplog.records[-1].dashboard_action == "pause"
    assert caplog.records[-1].dashboard_queue == "mail"


# -- forged requests and headers -------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["csrf_token", "own_token"])
def test_with_csrf_protect_the_forms_have_its_token(uri, field):
    app = make_app(uri, config={"SECRET_KEY": "s", "WTF_CSRF_FIELD_NAME": field})
    CSRFProtect(app)
    client = app.test_client()
    page = client.get("/backend/queue?queue=mail").text
    assert answer_form(client, page, "/queue/pause", seconds="60").status_code == 303
    assert client.post("/backend/queue/pause", data=PAUSE, headers=OWN).status_code == 400
    page = client.get("/backend/queue/delete-ready?queue=mail").text
    assert answer_form(client, page, "/queue/delete-ready", typed="mail").status_code == 303


def test_all_pages_have_the_headers(uri):
    client = make_app(uri).test_client()
    for answer in (client.get("/backend/"), client.get("/backend/queues.json"), client.get(NOT_FOUND)):
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store"
    with client.get("/backend/assets/dashboard.css") as answer:
        assert "no-store" not in answer.headers.get("Cache-Control", "")


def test_what_talisman_sets_stays(uri):
    app = make_app(uri)
    own = {"default-src": "'self'", "img-src": "*"}
    Talisman(app, force_https=False, content_security_policy=own, referrer_policy="no-referrer")
    answer = app.test_client().get("/backend/")
    assert answer.headers.getlist("Content-Security-Policy") == ["default-src 'self'; img-src *"]
    assert answer.headers.getlist("Referrer-Policy") == ["no-referrer"]
    assert answer.headers["Cache-Control"] == "no-store"


def test_what_the_app_sets_before_and_after_a_request_applies(uri):
    app = make_app(uri)
    app.before_request(lambda: abort(503) if request.args.get("closed") else None)
    app.before_request(lambda: setattr(flask.g, "seen", "yes"))

    def mark(response):
        response.headers["X-Seen"] = flask.g.seen
        response.headers["Content-Security-Policy"] = "default-src 'self'"
        return response

    app.after_request(mark)
    answer = app.test_client().get("/backend/")
    assert answer.headers["X-Seen"] == "yes"
    assert answer.headers.getlist("Content-Security-Policy") == ["default-src 'self'"]


# -- where it is mounted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/", "/a/b/c", "/ops"])
def test_it_works_below_any_prefix(uri, prefix):
    app = make_app(uri, register={"url_prefix": prefix})
    app.add_url_rule("/static/<name>", "other", lambda name: name)
    client = app.test_client()
    place = prefix.rstrip("/")
    page = client.get(f"{place}/queue?queue=mail").text
    assert f'href="{place}/assets/dashboard.css"' in page
    assert status_of(client, f"{place}/assets/dashboard.css") == 200
    answer = answer_form(client, page, "/queue/pause", seconds="60")
    assert answer.location == f"{place}/queue?queue=mail"
    assert "paused mail for 1m" in client.get(answer.location).text


def test_a_prefix_may_have_values_of_the_app(uri):
    app = make_app(uri, register={"url_prefix": "/<language>/backend"})
    app.url_defaults(lambda endpoint, values: values.setdefault("language", flask.g.get("language", "en")))
    app.before_request(lambda: setattr(flask.g, "language", request.view_args["language"]))
    client = app.test_client()
    page = client.get("/cs/backend/queue?queue=mail").text
    assert answer_form(client, page, "/queue/pause", seconds="60").location == "/cs/backend/queue?queue=mail"


def test_it_works_behind_a_proxy_and_below_a_script_name(uri):
    app = make_app(uri)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_proto=1, x_prefix=1)
    client = app.test_client()
    forwarded = {"X-Forwarded-Host": "shop.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/shop"}
    page = client.get("/backend/queue?queue=mail", headers=forwarded).text
    assert 'action="/shop/backend/queue/pause"' in page
    own = {**forwarded, "Origin": "https://shop.example"}
    answer = client.post("/backend/queue/pause", data=PAUSE, headers=own)
    assert (answer.status_code, answer.location) == (303, "/shop/backend/queue?queue=mail")
    cookie = answer.headers["Set-Cookie"]
    assert "Path=/shop/backend/;" in cookie
    assert "Secure" in cookie
    foreign = {**forwarded, "Origin": "https://evil.example"}
    assert client.post("/backend/queue/pause", data=PAUSE, headers=foreign).status_code == 403


def test_a_proxy_that_hides_the_host_is_named(uri):
    client = make_app(uri).test_client()
    answer = client.post("/backend/queue/pause", data=PAUSE, headers={"Origin": "https://shop.example"})
    assert (answer.status_code, "ProxyFix" in answer.text) == (403, True)


def test_it_works_in_an_app_that_is_mounted_below_another(uri):
    inner = make_app(uri)
    client = Client(DispatcherMiddleware(Flask("outer"), {"/inner": inner}))
    page = client.get("/inner/backend/queue?queue=mail").text
    assert 'action="/inner/backend/queue/pause"' in page


def test_it_works_in_a_blueprint_of_the_app(uri):
    app = Flask("shop")
    app.config["BACKEND_CONNECTION_URI"] = uri
    Backend(app)
    admin = Blueprint("admin", __name__, url_prefix="/admin")
    admin.register_blueprint(Dashboard(allow), url_prefix="/jobs")
    app.register_blueprint(admin)
    client = app.test_client()
    page = client.get("/admin/jobs/queue?queue=mail").text
    answer = answer_form(client, page, "/queue/pause", seconds="60")
    assert answer.location == "/admin/jobs/queue?queue=mail"
    page = client.get("/admin/jobs/queue/delete-ready?queue=mail").text
    assert answer_form(client, page, "/queue/delete-ready", typed="mail").status_code == 303


def test_two_dashboards_in_one_app_have_their_own_rights_and_records(uri):
    app = make_app(uri)
    app.register_blueprint(Dashboard(lambda action, what: action == "view", name="readers"), url_prefix="/read")
    client = app.test_client()
    client.post("/backend/queue/pause", data=PAUSE, headers=OWN)
    assert client.post("/read/queue/pause", data=PAUSE, headers=OWN).status_code == 403
    assert "<form" not in client.get("/read/queue?queue=mail").text
    assert 'href="/read/workers"' in client.get("/read/").text
    counts = [len(client.get(f"{place}/actions.json").json["actions"]) for place in ("/backend", "/read")]
    assert counts == [1, 0]


def test_two_apps_of_one_process_do_not_share_anything(uri, durable_broker):
    first, second = make_app(uri), make_app(durable_broker.uri, lambda action, what: action == "view")
    assert "mail" in first.test_client().get("/backend/queues.json").text
    assert second.test_client().get("/backend/queues.json").json["queues"] == []
    first.test_client().post("/backend/queue/pause", data=PAUSE, headers=OWN)
    assert second.test_client().get("/backend/actions.json").json["actions"] == []


def test_a_factory_makes_a_dashboard_for_each_app(uri):
    backend = Backend()

    def create_app():
        app = Flask("shop")
        app.config["BACKEND_CONNECTION_URI"] = uri
        app.register_blueprint(Dashboard(allow), url_prefix="/backend")  # before init_app
        backend.init_app(app)
        return app

    for app in (create_app(), create_app()):
        assert app.test_client().get("/backend/").status_code == 200


def test_with_host_matching_its_host_must_be_named(uri):
    app = Flask("shop", host_matching=True, static_host="static.example")
    app.config["BACKEND_CONNECTION_URI"] = uri
    Backend(app)
    with pytest.raises(RegistrationError, match=r"host=.admin\.example\.com"):
        app.register_blueprint(Dashboard(allow))
    app.register_blueprint(Dashboard(allow), host="admin.example")
    client = app.test_client()
    page = client.get("/backend/queue?queue=mail", base_url="http://admin.example")
    assert 'action="/backend/queue/pause"' in page.text
    assert status_of(client, "/backend/assets/dashboard.css", base_url="http://admin.example") == 200
    assert client.get("/backend/", base_url="http://other.example").status_code == 404


def test_with_a_server_name_and_a_subdomain_it_works(uri):
    app = Flask("shop", subdomain_matching=True)
    app.config.update(BACKEND_CONNECTION_URI=uri, SERVER_NAME="shop.example")
    Backend(app)
    app.register_blueprint(Dashboard(allow), subdomain="admin", url_prefix="/jobs")
    page = app.test_client().get("/jobs/queue?queue=mail", base_url="http://admin.shop.example")
    assert 'action="/jobs/queue/pause"' in page.text


def test_without_a_backend_one_sentence_says_so():
    app = Flask("shop")
    app.register_blueprint(Dashboard(allow))
    answer = app.test_client().get("/backend/")
    assert (answer.status_code, "has no Backend" in answer.text) == (500, True)


@pytest.mark.parametrize("stand_in", ["memory://", "sync://"])
def test_in_the_tests_of_an_app_pages_answer_503_to_those_who_may_see_them(stand_in):
    client = make_app(stand_in).test_client()
    for path in ("", "queues.json", "queue?queue=mail", "failures", "job?id=1", "schedules", "batches"):
        answer = client.get(f"/backend/{path}")
        assert (answer.status_code, f"{stand_in}, which is a stand-in" in answer.text) == (503, True), path
    assert client.post("/backend/queue/pause", data=PAUSE, headers=OWN).status_code == 503
    for path in ("workers", "actions"):  # of this host and process
        assert client.get(f"/backend/{path}").status_code == 200
    assert make_app(stand_in, None).test_client().get("/backend/").status_code == 403


# -- templates -------------------------------------------------------------------------------------------------

PAGES = ("", "queue?queue=mail", "workers", "actions", "queue?queue=none", "queue/delete-ready?queue=mail")


def test_nothing_that_the_app_does_to_jinja_reaches_the_pages(uri):
    app = make_app(uri)
    plain = {path: app.test_client().get(f"/backend/{path}").status_code for path in PAGES}
    app = make_app(uri)
    app.jinja_options = {
        "autoescape": False,
        "undefined": jinja2.StrictUndefined,
        "variable_start_string": "[[",
        "variable_end_string": "]]",
        "line_statement_prefix": "<",
        "trim_blocks": False,
    }
    app.select_jinja_autoescape = lambda filename: False
    app.jinja_env.filters["number"] = app.jinja_env.filters["length"] = lambda value: 1 / 0
    app.jinja_env.globals["nav"] = app.jinja_env.globals["url"] = "clash"
    app.context_processor(lambda: {"nav": "clash", "queue": "clash", "may": None, "now": None, "ui": "clash"})
    client = app.test_client()
    assert {path: client.get(f"/backend/{path}").status_code for path in PAGES} == plain


ODD_NAMES = ["..", "a//b", "+plus", "$(id);x", "queue.json", "n" * 180]


def follow_links(client) -> dict[str, int]:
    """Return the status of each page that a link leads to, with HEAD too."""
    urls, found = ["/backend/"], {}
    while urls:
        if (url := urls.pop()) in found:
            continue
        answer = client.get(url)
        found[url] = answer.status_code
        found[f"HEAD {url}"] = client.head(url).status_code
        urls += map(unescape, re.findall(r'<a[^>]* href="(/backend[^"]*)"', answer.text))
    return found


@pytest.mark.parametrize("is_empty", [True, False])
def test_all_pages_are_there_while_the_app_is_debugged_and_undefined_values_are_errors(broker, is_empty):
    app = make_app(broker.uri, config={"DEBUG": True, "TEMPLATES_AUTO_RELOAD": True, "TESTING": True})
    app.jinja_options = {"undefined": jinja2.StrictUndefined}
    for name in () if is_empty else ODD_NAMES:
        broker.put(name, b"{}", delay=60)
        bury_many(Settings(parse_broker(broker.uri)), name, 1, b"{}", endpoint="e/..?&#+", exception="ValueError")
    found = follow_links(app.test_client())
    assert len(found) >= (12 if is_empty else 100)
    assert {url: status for url, status in found.items() if status != 200} == {}


@pytest.mark.parametrize(
    "path", ["queue", "failures", "failures/group", "job", "failures/delete", "queue/retry-buried"]
)
def test_unknown_values_of_a_query_are_never_an_error_of_the_server(uri, path):
    client = make_app(uri).test_client()
    for query in (
        "queue=%ff&id=x",
        "queue=%00",
        "queue=mail&state=none&before=-1&task=%00&kind=%e2%80%ae",
        "queue=mail&before=9999999999999999999&id=9999999999999999999&note=9999999999999999999",
        "queue=mail&until=nan&newest=1&kind=x&pattern=[",
        "queue=mail&until=1e999&newest=9999999999999999999&kind=x",
        "queue=mail&queue=..&id=1&id=2",
        "queue=mail&id=%D9%A1",
        f"pattern={'*' * 400}&until=inf&newest=1",
    ):
        assert client.get(f"/backend/{path}?{query}").status_code < 500, query
        assert client.head(f"/backend/{path}?{query}").status_code < 500, query


def test_text_of_others_is_escaped_whatever_the_app_has_chosen(uri):
    app = make_app(uri)
    app.jinja_env.autoescape = False
    app.name = "<script>alert(1)</script>"
    client = app.test_client()
    assert "<script>alert" not in client.get("/backend/").text
    page = client.get("/backend/queue", query_string={"queue": "<img src=x onerror=alert(1)>\u202e"})
    assert page.status_code == 404
    assert "<img" not in page.text
    assert "\u202e" not in page.text
    client.set_cookie("flask_backend_notice", notice("<b>x</b>"), path="/backend/")
    assert "<b>x" not in client.get("/backend/").text


@pytest.mark.parametrize("forged", ["", "x", "eyJ4IjoxfQ", b"Your jobs are gone: call 555".hex(), ".", "\xff", "a.b.c"])
def test_a_notice_that_another_site_has_set_is_not_shown(uri, forged):
    app = make_app(uri, config={"SECRET_KEY": "s"})
    client = app.test_client()
    for value in (forged, notice(forged), notice(forged, "other")):
        client.set_cookie("flask_backend_notice", value, path="/backend/")
        assert 'class="notice"' not in client.get("/backend/").text
    client.post("/backend/queue/pause", data=PAUSE, headers=OWN)
    assert "paused mail for 1m" in client.get("/backend/").text
    assert 'class="notice"' not in client.get("/backend/").text  # it is shown once


def test_the_app_may_have_its_own_layout_and_its_own_base(uri, tmp_path):
    folder = tmp_path / "templates"
    (folder / "flask_backend").mkdir(parents=True)
    (folder / "base.html").write_text("{% block main %}the app's{% endblock %}")
    (folder / "queues.html").write_text("the app's")
    (folder / "flask_backend" / "layout.html").write_text(
        '{% extends "flask_backend/base.html" %}{% block brand %}{{ shop_name }} {{ 3|twice }}{% endblock %}'
        '{% block nav_end %}<li><a href="{{ url_for("home") }}">Home</a></li>{% endblock %}'
    )
    app = Flask("shop", template_folder=str(folder))
    app.config["BACKEND_CONNECTION_URI"] = uri
    Backend(app)
    app.add_url_rule("/home", "home", lambda: "")
    app.register_blueprint(Dashboard(allow))
    app.context_processor(lambda: {"shop_name": "Corner shop"})
    app.template_filter("twice")(lambda number: 2 * number)
    page = app.test_client().get("/backend/").text
    assert "Corner shop 6" in page
    assert '<a href="/home">Home</a>' in page
    assert "<h1>Queues</h1>" in page
    with app.test_request_context():
        assert flask.render_template("base.html") == "the app's"


@pytest.mark.parametrize(
    "setting",
    [
        {"TRAP_HTTP_EXCEPTIONS": True},
        {"TRAP_BAD_REQUEST_ERRORS": True},
        {"PROPAGATE_EXCEPTIONS": True},
        {"EXPLAIN_TEMPLATE_LOADING": True},
        {"TESTING": True, "DEBUG": True},
        {"MAX_CONTENT_LENGTH": 1 << 16},
    ],
)
def test_no_setting_of_the_app_changes_what_a_page_answers(uri, setting):
    app = make_app(uri, config=setting)
    app.errorhandler(403)(lambda error: ("the app's", 418))
    app.errorhandler(404)(lambda error: ("the app's", 418))
    app.errorhandler(Exception)(lambda error: ("the app's", 418))
    client = app.test_client()
    assert client.get(NOT_FOUND).status_code == 404
    assert client.post("/backend/queue/pause", data=PAUSE).status_code == 403
    assert client.post("/backend/queue/pause", data=PAUSE, headers=OWN).status_code == 303
