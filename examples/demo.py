"""The demo: a broker, a web app and a supervisor with four workers; trouble, and how it ends. See `./run demo`.

It exits with 0 only if everything that it shows was true.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.request import ProxyHandler, build_opener

import greenstalk
import psutil

HERE = Path(__file__).parent
QUEUE = "com.example/thumbnails"
WORKERS = 4
PHOTOS = sorted(path.name for path in (HERE / "thumbnails" / "photos").glob("*.jpg"))
DEADLINE_S = 15  # for each condition; a loaded machine is slow, and the retry alone takes two seconds


class DemoError(Exception):
    """A condition was not met."""


class Program:
    """A program that runs beside the demo and writes to a log file. Leaving its context ends it."""

    def __init__(self, *command: str | Path, log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        # The caller's settings for other programs do not apply to these.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "BACKEND_"))}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=HERE, env=inherited | (env or {}), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Send TERM and return the exit code, or minus the number of the signal that killed the program."""
        self.process.terminate()  # does nothing if it has ended
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def said(self, pattern: str) -> list[re.Match[str]]:
        """Return every match in the log."""
        return list(re.finditer(pattern, self.log.read_text(errors="replace")))

    def wait_for(self, pattern: str) -> re.Match[str]:
        wait_until(lambda: self.has_ended or self.said(pattern), f"{self.log.stem} logs {pattern!r}")
        if not self.said(pattern):
            raise DemoError(f"{self.log.stem} has ended. Its log:\n{self.log.read_text(errors='replace')[-2000:]}")
        return self.said(pattern)[0]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(f"waited {DEADLINE_S} s in vain until {what}")
        time.sleep(0.02)


# -- the three programs --------------------------------------------------------------------------------------


def start_broker(stack: ExitStack, folder: Path) -> tuple[str, int]:
    for _ in range(10):  # another program can take the port before the broker does
        with socket.create_server(("127.0.0.1", 0)) as probe:
            host, port = probe.getsockname()
        command = broker_command(host, port)
        broker = stack.enter_context(Program(*command, log=folder / "broker.log"))
        wait_until(lambda: broker.has_ended or accepts(host, port), "the broker accepts connections")  # noqa: B023  # called at once
        if not broker.has_ended:
            return host, port
    raise DemoError("the broker finds no free port; see broker.log")


def broker_command(host: str, port: int) -> list[str]:
    """Return the command that starts Beanstalkd, or the embedded broker where it is not installed."""
    if has_beanstalkd():
        return ["beanstalkd", "-l", host, "-p", str(port)]
    return [sys.executable, "-m", "flask_backend", "broker", "--listen", host, "--port", str(port)]


def has_beanstalkd() -> bool:
    return shutil.which("beanstalkd") is not None


def accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def start_web(stack: ExitStack, folder: Path, env: dict[str, str]) -> str:
    command = [sys.executable, "-m", "flask", "--app", "demo_app", "run", "--port", "0"]
    web = stack.enter_context(Program(*command, log=folder / "web.log", env=env))
    return web.wait_for(r"Running on (http://\S+)")[1]


def start_supervisor(stack: ExitStack, folder: Path, env: dict[str, str]) -> Program:
    flask_backend = Path(sysconfig.get_path("scripts")) / "flask-backend"
    command = [flask_backend, "--app", "demo_app", "supervise", "--queue", QUEUE, "--workers", str(WORKERS)]
    supervisor = stack.enter_context(Program(*command, log=folder / "supervisor.log", env=env))
    supervisor.wait_for(r"supervisor: ready")
    return supervisor


# -- requests to them ----------------------------------------------------------------------------------------


def post(url: str) -> str:
    """Press a button of the web app; follow a redirect as a browser does."""
    opener = build_opener(ProxyHandler({}))  # a proxy, if any, cannot reach this machine's ports
    with opener.open(url, data=b"", timeout=DEADLINE_S) as answer:
        return answer.read().decode()


def workers_of(supervisor: Program) -> set[int]:
    return {child.pid for child in psutil.Process(supervisor.process.pid).children()}


def jobs_left(host: str, port: int) -> int:
    with greenstalk.Client((host, port)) as client:
        stats = client.stats()
    return sum(int(stats[f"current-jobs-{state}"]) for state in ("ready", "reserved", "delayed", "buried"))


@dataclass
class Facts:
    """Observations during the run, and matches in the log of the supervisor and its workers."""

    job_ids: dict[str, int]
    first_workers: set[int]
    last_workers: set[int]
    jobs_left: int
    exit_code: int
    processes_left: list[psutil.Process]
    files: list[Path]
    made: list[re.Match[str]]
    failed: list[re.Match[str]]
    retried: list[re.Match[str]]
    killed: list[re.Match[str]]
    redone: list[re.Match[str]]


def run(folder: Path) -> Facts:
    with ExitStack() as stack:
        host, port = start_broker(stack, folder)
        env = {"BACKEND_CONNECTION_URI": f"btq://{host}:{port}", "FLASK_GALLERY_FOLDER": str(folder)}
        web = start_web(stack, folder, env)
        supervisor = start_supervisor(stack, folder, env)
        wait_until(lambda: len(workers_of(supervisor)) == WORKERS, "all workers are there")
        first_workers = workers_of(supervisor)
        processes = psutil.Process().children(recursive=True)
        print(f"{'Beanstalkd ' if has_beanstalkd() else 'Own broker '}  {host}:{port}")
        print(f"Web app      {web}")
        print(f"Supervisor   pid {supervisor.process.pid}, workers {listed(first_workers)}")

        job_ids = json.loads(post(f"{web}/grief"))
        post(f"{web}/thumbnails")
        print("\nSent, by POSTs to the web app:")
        for name, job_id in job_ids.items():
            print(f"  {name}(...): job {job_id}")
        print(f"  thumbnail.map([...]): {len(PHOTOS)} photographs")

        wait_until(lambda: jobs_left(host, port) == 0, "every job has left the queue")
        wait_until(lambda: workers_of(supervisor) - first_workers, "a new worker is there")
        wait_until(lambda: len(workers_of(supervisor)) == WORKERS, "all workers are there again")
        last_workers = workers_of(supervisor)
        processes += psutil.Process().children(recursive=True)
        left_in_queue = jobs_left(host, port)
        exit_code = supervisor.stop()

    return Facts(
        job_ids=job_ids,
        first_workers=first_workers,
        last_workers=last_workers,
        jobs_left=left_in_queue,
        exit_code=exit_code,
        processes_left=[process for process in processes if process.is_running()],
        files=sorted((folder / "thumbnails").iterdir()),
        made=supervisor.said(r"\[(\d+)\] \S+ made the thumbnails of (\S+) in (\d+ ms)"),
        failed=supervisor.said(r"task fails_first .*failed \((.*)\), (next try in \d+ s)"),
        retried=supervisor.said(r"\[(\d+)\] \S+ did fails_first"),
        killed=supervisor.said(r"worker (\d+) of .* killed by signal 9 .* at job (\d+) .*; replaced"),
        redone=supervisor.said(r"\[(\d+)\] \S+ did kills_its_worker_first"),
    )


def tell(facts: Facts) -> None:
    print("\nWhat happened:")
    for match in facts.made:
        print(f"  worker {match[1]} made the thumbnails of {match[2]} in {match[3]}")
    for match in facts.failed:
        print(f"  fails_first failed ({match[1]}): {match[2]}")
    for match in facts.retried:
        print(f"  worker {match[1]} did fails_first")
    for match in facts.killed:
        print(f"  worker {match[1]} was killed by its job {match[2]}, kills_its_worker_first")
    for match in facts.redone:
        print(f"  worker {match[1]} did kills_its_worker_first")
    old, new = facts.first_workers - facts.last_workers, facts.last_workers - facts.first_workers
    print(f"  the supervisor replaced worker {listed(old)} by {listed(new)}")
    print(f"  after TERM the supervisor exited with {facts.exit_code}")


def judge(facts: Facts) -> dict[str, bool]:
    """Return each statement that should be true, and whether it is."""
    old, new = facts.first_workers - facts.last_workers, facts.last_workers - facts.first_workers
    killed_pids, killed_jobs = [int(match[1]) for match in facts.killed], [int(match[2]) for match in facts.killed]
    return {
        "every photograph's thumbnails were made, once": sorted(match[2] for match in facts.made) == PHOTOS,
        "three files were written for each, and no other": len(facts.files) == 3 * len(PHOTOS),
        "fails_first failed once, was retried, and was done": len(facts.failed) == len(facts.retried) == 1,
        "kills_its_worker_first killed one worker, and was done": len(killed_jobs) == len(facts.redone) == 1,
        "the supervisor's log names that job": killed_jobs == [facts.job_ids["kills_its_worker_first"]],
        "the killed worker was replaced, and no other": set(killed_pids) == old and len(new) == 1,
        "the queue is empty": facts.jobs_left == 0,
        "the supervisor stopped with exit code 0": facts.exit_code == 0,
        "no process is left": not facts.processes_left,
    }


def listed(pids: set[int]) -> str:
    return ", ".join(map(str, sorted(pids))) or "none"


def main() -> int:
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="flask-backend-demo-"))
    try:
        facts = run(folder)
    except (DemoError, OSError) as error:
        print(f"\nThe demo broke off: {error}\nThe logs are in {folder}", file=sys.stderr)
        return 1
    tell(facts)
    print(f"\n{len(facts.files)} thumbnails to look at, and the logs:\n  {folder}\n")
    wrong = []
    for statement, is_true in judge(facts).items():
        print(f"{'true  ' if is_true else 'FALSE '} {statement}")
        if not is_true:
            wrong.append(statement)
    if wrong:
        print(f"\nThe demo failed. Not true: {'; '.join(wrong)}. The logs are in {folder}", file=sys.stderr)
        return 1
    print(f"\nAll of it was true, {time.monotonic() - started:.1f} s after the start.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
