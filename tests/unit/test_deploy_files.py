"""The files in deploy/ agree with each other, with the defaults of the code, and with the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from flask_backend.config import Settings
from flask_backend.worker.link import RESERVE_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCS = ROOT / "docs"
COMPOSE = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())


# -- the host of Beanstalkd ----------------------------------------------------------------------------------

SYSCTLS = {
    name: int(value)
    for name, value in re.findall(
        r"(?m)^(net\S+) = (\d+)$", (DEPLOY / "systemd" / "sysctl.d" / "60-beanstalkd.conf").read_text()
    )
}
LINUX = {"tcp_keepalive_time": 7200, "tcp_keepalive_intvl": 75, "tcp_keepalive_probes": 9, "tcp_retries2": 15}
OURS = {name.removeprefix("net.ipv4."): value for name, value in SYSCTLS.items()}


def silent_s(settings):
    """Return when Linux gives up a connection on which nothing arrives."""
    return settings["tcp_keepalive_time"] + settings["tcp_keepalive_intvl"] * settings["tcp_keepalive_probes"]


def unanswered_s(settings, round_trip_s):
    """Return when Linux gives up a connection with unacknowledged data: tcp(7), and write_timeout in tcp_timer.c.

    It sends again after 0.2 s and a round trip, then after twice that time, and so on, at most every 120 s. It gives up
    at the first of these moments at which as much time has passed as for this number of tries without a round trip.
    """

    def after(tries, first_s):
        return sum(min(first_s * 2**n, 120) for n in range(tries))

    model_s = after(settings["tcp_retries2"] + 1, 0.2)
    return next(s for n in range(99) if (s := after(n, 0.2 + round_trip_s)) >= model_s)


def test_all_files_set_the_same_times_for_the_host_of_beanstalkd():
    assert set(OURS) == set(LINUX)
    assert COMPOSE["services"]["beanstalkd"]["sysctls"] == SYSCTLS


def test_linux_gives_up_a_connection_sooner_than_a_job_is_free_without_it_but_not_before_the_worker_does():
    noticed_by_worker_s = 15 + 3 * 5  # its own keepalive: TCP_KEEPIDLE and the others in broker/connection.py
    assert noticed_by_worker_s < silent_s(OURS) < Settings().ttr_s
    assert noticed_by_worker_s < unanswered_s(OURS, 0) < unanswered_s(OURS, 0.2) < Settings().ttr_s


def test_the_documented_bounds_follow_from_the_settings():
    text = (DOCS / "run" / "beanstalkd.md").read_text()
    rows = [
        re.findall(r"(?<=\| )[^|]+(?= \|)", line)[1:] for line in text.splitlines() if re.match(r"\| (at|when)", line)
    ]
    ttr_s = Settings().ttr_s
    round_trip_s = int(re.search(r"round trips of up to (\d+) ms", text)[1]) / 1000
    seconds = [
        (ttr_s, RESERVE_S + ttr_s),
        (silent_s(LINUX), RESERVE_S + unanswered_s(LINUX, 0)),
        (max(silent_s(OURS), unanswered_s(OURS, round_trip_s)), RESERVE_S + silent_s(OURS)),
    ]
    assert rows == [["120 s", "125 s"], ["2 h 11 min", "16 min"], ["60 s", "65 s"]]
    assert seconds[0] == (120, 125)
    assert int(seconds[1][0] / 60) == 2 * 60 + 11
    assert 15 * 60 < seconds[1][1] <= 16 * 60
    assert seconds[2] == (60, 65)
    assert RESERVE_S + unanswered_s(OURS, round_trip_s) <= 65
