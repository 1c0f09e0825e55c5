"""The files in deploy/ agree with each other, with the defaults of the code, and with the documentation."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from support.containers import Image

from flask_backend.cli.commands.supervise import supervise
from flask_backend.config import Address, Settings
from flask_backend.system.page import FROZEN_AFTER_S
from flask_backend.worker.link import RESERVE_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCS = ROOT / "docs"
COMPOSE = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
KUBERNETES = DEPLOY / "kubernetes"
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
SETTINGS = dict(pair.split("=", 1) for pair in KUSTOMIZATION["configMapGenerator"][0]["literals"])
MANIFESTS = {
    (each["kind"], each["metadata"]["name"]): each
    for name in KUSTOMIZATION["resources"]
    for each in yaml.safe_load_all((KUBERNETES / name).read_text())
}
POD = MANIFESTS["Deployment", "worker"]["spec"]["template"]["spec"]
[WORKER] = POD["containers"]
[BEANSTALKD] = MANIFESTS["StatefulSet", "beanstalkd"]["spec"]["template"]["spec"]["containers"]
PROBES = ("startup", "liveness", "readiness")


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
    pod = MANIFESTS["StatefulSet", "beanstalkd"]["spec"]["template"]["spec"]
    component = yaml.safe_load((KUBERNETES / "retries" / "kustomization.yaml").read_text())
    [operation] = yaml.safe_load(component["patches"][0]["patch"])
    sysctls = [*pod["securityContext"]["sysctls"], operation["value"]]
    assert {each["name"]: int(each["value"]) for each in sysctls} == SYSCTLS


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


# -- times ---------------------------------------------------------------------------------------------------


def seconds(text):
    """Read a time as systemd, Docker or a Dockerfile has it."""
    units = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)\s*([a-z]*)", str(text)))


def option(name):
    return next(each.default for each in supervise.params if each.name == name)


UNIT = dict(
    line.split("=", 1)
    for line in (DEPLOY / "systemd" / "flask-backend@.service").read_text().splitlines()
    if "=" in line and line[0] not in "#;"
)
HEALTHCHECKS = {
    name: dict(re.findall(r"--(\S+)=(\S+)", Image(DEPLOY / "docker" / name).last("HEALTHCHECK")))
    for name in ("Dockerfile", "beanstalkd.Dockerfile")
}


def stops():
    """Yield each file that stops a supervisor: its name, how long that may take, and the supervisor's settings."""
    yield "systemd", seconds(UNIT["TimeoutStopSec"]), variables(DEPLOY / "systemd" / "flask-backend.env.example")
    worker = COMPOSE["services"]["worker"]
    yield "compose", seconds(worker["stop_grace_period"]), worker["environment"]
    yield "kubernetes", POD["terminationGracePeriodSeconds"], SETTINGS


def variables(env_file):
    return dict(re.findall(r"(?m)^(\w+)=(.*)$", env_file.read_text()))


def test_each_stop_has_time_for_the_drain_and_for_a_task_that_has_to_be_killed():
    for name, stop_s, settings in stops():
        drain_s = float(settings.get("BACKEND_DRAIN_TIMEOUT", option("drain_timeout")))
        kill_s = float(settings.get("BACKEND_KILL_GRACE", option("kill_grace")))
        assert stop_s >= drain_s + kill_s, name


def test_the_documented_stops_are_those_of_the_files():
    times = {name: stop_s for name, stop_s, _ in stops()}
    workers = (DOCS / "run" / "workers.md").read_text()
    assert f"the systemd unit waits {times['systemd']:g} s" in workers
    assert f"the containers {times['compose']:g} s" in workers
    assert times["compose"] == times["kubernetes"]
    assert f"`docker stop --time {times['compose']:g}`" in (DOCS / "run" / "containers.md").read_text()


def test_docker_and_kubernetes_ask_for_the_health_as_often_and_wait_as_long():
    docker = HEALTHCHECKS["Dockerfile"]
    assert WORKER["livenessProbe"]["periodSeconds"] == seconds(docker["interval"])
    assert {WORKER[f"{name}Probe"]["timeoutSeconds"] for name in PROBES} == {seconds(docker["timeout"])}
    docker = HEALTHCHECKS["beanstalkd.Dockerfile"]
    assert {BEANSTALKD[f"{name}Probe"]["periodSeconds"] for name in PROBES[1:]} == {seconds(docker["interval"])}
    assert {BEANSTALKD[f"{name}Probe"]["timeoutSeconds"] for name in PROBES} == {seconds(docker["timeout"])}


def test_no_probe_restarts_a_supervisor_that_starts():
    # The page appears after the import, and hooks may then take the boot timeout.
    startup = WORKER["startupProbe"]
    boot_s = option("boot_timeout")
    assert seconds(HEALTHCHECKS["Dockerfile"]["start-period"]) >= boot_s
    assert startup["periodSeconds"] * startup["failureThreshold"] >= boot_s


def test_no_watchdog_restarts_a_supervisor_that_does_not_count_as_frozen():
    assert seconds(UNIT["WatchdogSec"]) > FROZEN_AFTER_S
    assert WORKER["livenessProbe"]["periodSeconds"] * WORKER["livenessProbe"]["failureThreshold"] > FROZEN_AFTER_S


def test_all_files_ask_by_the_same_commands_and_only_for_what_a_restart_can_mend():
    live = Image(DEPLOY / "docker" / "Dockerfile").words("HEALTHCHECK")
    assert live == ["flask-backend", "health", "--live"]
    assert [WORKER[f"{name}Probe"]["exec"]["command"] for name in PROBES] == [live, live, [*live[:2], "--ready"]]
    answers = Image(DEPLOY / "docker" / "beanstalkd.Dockerfile").words("HEALTHCHECK")
    assert [BEANSTALKD[f"{name}Probe"]["exec"]["command"] for name in PROBES] == [answers] * 3


# -- Kubernetes ----------------------------------------------------------------------------------------------


def test_all_manifests_are_in_the_kustomization():
    assert set(KUSTOMIZATION["resources"]) == {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_manifests_are_valid(version):
    valid = set()
    for (kind, name), each in MANIFESTS.items():
        if kind != "ScaledObject":
            kubernetes_validate.validate(each, version, strict=True)
            valid.add((kind, name))
    assert valid == {
        *(("Deployment", "worker"), ("PodDisruptionBudget", "worker"), ("NetworkPolicy", "worker")),
        *(("StatefulSet", "beanstalkd"), ("Service", "beanstalkd"), ("NetworkPolicy", "beanstalkd")),
    }
    assert set(MANIFESTS) == valid | {("ScaledObject", "worker")}


def test_the_validation_finds_a_misspelt_field():
    deployment = copy.deepcopy(MANIFESTS["Deployment", "worker"])
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["periodSecond"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.29", strict=True)


# The schema of KEDA's resource, as far as we use it: keda.sh/docs, "ScaledObject specification" and "Beanstalkd".
SCALED_OBJECT = {
    "scaleTargetRef": {"name"},
    "minReplicaCount": int,
    "maxReplicaCount": int,
    "pollingInterval": int,
    "fallback": {"failureThreshold", "replicas"},
    "advanced": {"horizontalPodAutoscalerConfig"},
    "triggers": list,
}
TRIGGER = {"server", "tube", "value", "timeout", "activationValue", "includeDelayed"}


def check_scaled_object(scaled, settings, namespace):
    """Check what KEDA would find out only when it runs; its own validation accepts any metadata."""
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    spec = scaled["spec"]
    for key, value in spec.items():
        expected = SCALED_OBJECT[key]
        assert set(value) <= expected if isinstance(expected, set) else isinstance(value, expected), key
    assert 0 <= spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    queues = settings["BACKEND_QUEUES"].split()
    assert [trigger["metadata"]["tube"] for trigger in spec["triggers"]] == queues
    for trigger in spec["triggers"]:
        assert trigger["type"] == "beanstalkd"
        metadata = trigger["metadata"]
        assert set(metadata) <= TRIGGER
        assert {type(value) for value in metadata.values()} == {str}
        # KEDA runs in another namespace, and connects only if there is a port.
        broker = Address.parse(settings["BACKEND_CONNECTION_URI"])
        assert metadata["server"] == f"{broker.host}.{namespace}:{broker.port}"
        # Milliseconds, or seconds before KEDA 2.18; a unit is an error there.
        assert metadata["timeout"].isdecimal()
        assert int(metadata["timeout"]) >= 1000
        # Each pod takes as many jobs as it has workers, whose number is fixed.
        assert metadata["value"] == settings["BACKEND_WORKERS"]
        assert spec["minReplicaCount"] > 0 or metadata.get("includeDelayed") == "true"


def test_keda_scales_the_workers_by_their_number_and_their_queues():
    scaled = MANIFESTS["ScaledObject", "worker"]
    check_scaled_object(scaled, SETTINGS, KUSTOMIZATION["namespace"])
    target = MANIFESTS["Deployment", scaled["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in target["spec"]


def test_the_workers_find_the_service_of_beanstalkd():
    broker = Address.parse(SETTINGS["BACKEND_CONNECTION_URI"])
    service = MANIFESTS["Service", broker.host]["spec"]
    [container_port] = BEANSTALKD["ports"]
    assert [port["port"] for port in service["ports"]] == [broker.port] == [container_port["containerPort"]]
    template = MANIFESTS["StatefulSet", "beanstalkd"]["spec"]["template"]
    assert service["selector"].items() <= template["metadata"]["labels"].items()


def test_only_pods_with_the_label_and_keda_reach_beanstalkd():
    broker = MANIFESTS["NetworkPolicy", "beanstalkd"]["spec"]
    [rule] = broker["ingress"]
    assert broker["podSelector"]["matchLabels"] == MANIFESTS["Service", "beanstalkd"]["spec"]["selector"]
    assert rule["ports"] == [{"port": Address.parse(SETTINGS["BACKEND_CONNECTION_URI"]).port}]
    pods, keda = rule["from"]
    worker = MANIFESTS["Deployment", "worker"]["spec"]["template"]["metadata"]["labels"]
    assert pods["podSelector"]["matchLabels"].items() <= worker.items()
    assert keda == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}
    assert MANIFESTS["NetworkPolicy", "worker"]["spec"]["podSelector"]["matchLabels"].items() <= worker.items()


@pytest.mark.parametrize("name", ["Deployment", "StatefulSet"])
def test_pods_meet_the_restricted_standard(name):
    """See kubernetes.io/docs/concepts/security/pod-security-standards; its safe sysctls are those since 1.29."""
    pod = next(each for (kind, _), each in MANIFESTS.items() if kind == name)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    image = Image(DEPLOY / "docker" / ("Dockerfile" if name == "Deployment" else "beanstalkd.Dockerfile"))
    users = {pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")}
    assert users == {image.user}
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    safe = {"tcp_keepalive_time", "tcp_keepalive_intvl", "tcp_keepalive_probes"}
    sysctls = pod["securityContext"].get("sysctls", [])
    assert {each["name"].removeprefix("net.ipv4.") for each in sysctls} <= safe
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
