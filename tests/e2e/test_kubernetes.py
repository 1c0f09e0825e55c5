"""The manifests of deploy/kubernetes as Kustomize builds them, and the containers as these restrict them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path

import greenstalk
import kubernetes_validate
import pytest
import yaml
from support.containers import Container, Image, require_containers
from support.hosts import Network
from support.waiting import wait_until

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
DOCKER = ROOT / "deploy" / "docker"
# This machine's files stand for those that the build of the image puts there.
WORKERS = Image(DOCKER / "Dockerfile", {"/venv": Path(sys.prefix), "/app": ROOT / "examples" / "thumbnails"})
BEANSTALKD = Image(DOCKER / "beanstalkd.Dockerfile")
QUEUE = "com.example/thumbnails"
OVERLAY, WITHOUT_KEDA, FOR_METRICS = (
    textwrap.dedent(block)
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "run" / "kubernetes.md").read_text(), re.DOTALL)
)


# -- as Kustomize builds them --------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path):
    """Build an overlay beside a copy of the folder deploy, as in the documentation."""
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here")
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")

    def build(overlay):
        (tmp_path / "shop").mkdir(exist_ok=True)
        (tmp_path / "shop" / "kustomization.yaml").write_text(overlay)
        built = subprocess.run(["kubectl", "kustomize", tmp_path / "shop"], capture_output=True, text=True)
        assert (built.returncode, built.stderr) == (0, "")
        objects = list(yaml.safe_load_all(built.stdout))
        for each in objects:
            if each["kind"] != "ScaledObject":
                kubernetes_validate.validate(each, "1.29", strict=True)
        # Of all kinds but one there is only one object.
        return {each["kind"]: each for each in objects} | {
            ("NetworkPolicy", each["metadata"]["name"]): each for each in objects if each["kind"] == "NetworkPolicy"
        }

    return build


def test_the_documented_overlay_changes_everything_that_belongs_together(build):
    built = build(OVERLAY)

    assert {each["metadata"]["namespace"] for each in built.values()} == {"shop"}
    settings = built["ConfigMap"]
    [trigger] = built["ScaledObject"]["spec"]["triggers"]
    assert trigger["metadata"]["server"] == "beanstalkd.shop:11300"
    assert trigger["metadata"]["tube"] == settings["data"]["BACKEND_QUEUES"]
    assert trigger["metadata"]["value"] == settings["data"]["BACKEND_WORKERS"]
    [worker] = built["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert worker["image"] == "example/shop:7"
    assert worker["envFrom"][0] == {"configMapRef": {"name": settings["metadata"]["name"]}}
    [beanstalkd] = built["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert beanstalkd["image"] == "example/beanstalkd:1.12"


def test_the_documented_overlay_without_keda_and_with_all_sysctls(build):
    rest = OVERLAY[: OVERLAY.index("patches:")]

    built = build(rest + WITHOUT_KEDA + "components:\n  - ../deploy/kubernetes/retries\n")

    assert "ScaledObject" not in built
    assert built["Deployment"]["spec"]["replicas"] == 3
    sysctls = built["StatefulSet"]["spec"]["template"]["spec"]["securityContext"]["sysctls"]
    assert sysctls[-1]["name"] == "net.ipv4.tcp_retries2"


def test_the_documented_patch_lets_prometheus_in(build):
    built = build(OVERLAY + FOR_METRICS.removeprefix("patches:\n"))

    [rule] = built["NetworkPolicy", "worker"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": 9464}]


# -- as their containers run ---------------------------------------------------------------------------------


class Spec:
    """How Kubernetes starts the container of a Deployment or StatefulSet, and what it asks it."""

    def __init__(self, file, kind):
        [found] = [each for each in yaml.safe_load_all((KUBERNETES / file).read_text()) if each["kind"] == kind]
        self.pod = found["spec"]["template"]["spec"]
        [self.container] = self.pod["containers"]
        [generated] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["configMapGenerator"]
        is_worker = {"configMapRef": {"name": generated["name"]}} in self.container.get("envFrom", ())
        self.env = dict(pair.split("=", 1) for pair in generated["literals"] if is_worker)
        self.env |= {each["name"]: each["value"] for each in self.container.get("env", ())}
        self.volumes = [mount["mountPath"] for mount in self.container["volumeMounts"]]
        self.command = self.container.get("command", ())
        self.grace_s = self.pod["terminationGracePeriodSeconds"]

    def probe(self, name):
        return self.container[f"{name}Probe"]["exec"]["command"]


class Service:
    """How Docker starts a service of the compose file, and what it asks it."""

    def __init__(self, name):
        found = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"][name]
        assert found["read_only"]
        self.env = {
            key: str(value).partition(":-")[2].rstrip("}") or str(value) for key, value in found["environment"].items()
        }
        self.volumes = [volume.partition(":")[2] for volume in found["volumes"]] + found["tmpfs"]
        self.command = ()
        self.grace_s = int(found["stop_grace_period"].removesuffix("s"))

    def probe(self, name):
        return [*WORKERS.words("HEALTHCHECK")[:2], "--ready"] if name == "readiness" else WORKERS.words("HEALTHCHECK")


@pytest.fixture
def pod(tmp_path):
    """Start containers in one network, where the names of services are lines of /etc/hosts."""
    require_containers()
    network = Network()
    host = network.add()
    with ExitStack() as stack:
        stack.callback(network.close)

        def start(name, image, spec):
            running = Container(
                *(image, host, tmp_path / name),
                env=spec.env,
                volumes=spec.volumes,
                command=spec.command,
                hosts="127.0.0.1 beanstalkd\n",
            )
            stack.callback(running.end)
            return running

        start.host = host
        yield start


@pytest.mark.parametrize("by", ["kubernetes", "compose"])
def test_containers_work_without_root_rights_and_without_a_writable_root(pod, by):
    broker = Spec("beanstalkd.yaml", "StatefulSet")
    server = pod("beanstalkd", BEANSTALKD, broker)
    wait_until(lambda: server.passes(*broker.probe("startup")), "beanstalkd answers")
    assert server.passes(*broker.probe("liveness"))
    spec = Spec("worker.yaml", "Deployment") if by == "kubernetes" else Service("worker")
    workers = pod("worker", WORKERS, spec)
    wait_until(lambda: workers.passes(*spec.probe("startup")), "the app is imported")
    wait_until(lambda: workers.passes(*spec.probe("readiness")), "the workers are ready")

    with greenstalk.Client(pod.host.connect("127.0.0.1", 11300), encoding=None, use=QUEUE) as client:
        client.put(json.dumps({"endpoint": "thumbnail", "args": ["chelsea.jpg"]}).encode())
        wait_until(lambda: "made the thumbnails of chelsea.jpg" in workers.log.read_text(), "the task has run")
    assert "chelsea.jpg.wide.jpg" in workers.exec("ls", "/data/gallery/thumbnails").stdout

    for each in (server, workers):
        assert "Read-only file system" in each.exec("touch", "/anything").stderr
        status = each.exec("cat", "/proc/1/status").stdout.split("\n")
        assert {"Uid:\t10001\t10001\t10001\t10001", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"} <= set(status)
    # The page is where the manifest puts it, or in the memory that each container has.
    place = spec.env.get("RUNTIME_DIRECTORY", "/dev/shm/flask-backend-10001")  # noqa: S108
    assert any(name.startswith("1.0.") for name in workers.exec("ls", place).stdout.split())
    # All that the node allows: no connection is refused before that.
    [limits] = [line for line in server.exec("cat", "/proc/1/limits").stdout.split("\n") if "open files" in line]
    soft, hard = limits.split()[3:5]
    assert soft == hard

    # A broker that is away is no reason for a restart.
    server.end()
    wait_until(lambda: not workers.passes(*spec.probe("readiness")), "not ready without a broker")
    assert workers.passes(*spec.probe("liveness"))
    server = pod("beanstalkd-again", BEANSTALKD, broker)
    wait_until(lambda: workers.passes(*spec.probe("readiness")), "ready again")

    begun = time.monotonic()
    workers.signal(signal.Signals[WORKERS.last("STOPSIGNAL")])
    assert workers.process.wait(20) == 0
    assert time.monotonic() - begun < spec.grace_s
