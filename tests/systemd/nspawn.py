"""A machine with a real systemd: a container that systemd-nspawn boots from a tree."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOT_S = 60


class BootError(Exception):
    """The container has not booted."""


class Machine:
    """A booted container. The tree stays as it was: all changes go to memory. Its network is its own loopback."""

    def __init__(self, tree: Path, log: Path, *options: str) -> None:
        self._log = log
        # With systemd on the host the container gets a scope there; otherwise it stays in our control group.
        self._has_scope = Path("/run/systemd/system").exists()
        place = [] if self._has_scope else ["--keep-unit"]
        # In a namespace of pids: its end is the end of all, however the tests end.
        within = ("setpriv", "--pdeathsig=KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        with log.open("wb") as file:
            self._unshare = subprocess.Popen(
                [
                    *(*within, "systemd-nspawn", "--boot", f"--directory={tree}"),
                    *("--quiet", "--volatile=overlay", "--private-network", "--register=no", "--console=pipe", *place),
                    *(f"--machine=flask-backend-{os.getpid()}", *options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is for the tests
            )
        self._container = self._leader = 0
        try:
            self._leader = self._wait_for(self._find_leader, "process 1")
            self._wait_for(self._has_booted, "the end of the boot")
        except BaseException:
            self.end()
            raise

    def run(self, *command: str, check: bool = True, folder: str = "/", **environment: str) -> str:
        """Run a command in the container, as root; return what it prints."""
        done = self.try_to(*command, folder=folder, **environment)
        assert not check or done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}"
        return done.stdout

    def try_to(self, *command: str, folder: str = "/", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as root."""
        variables = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", **environment}
        return subprocess.run(
            ["nsenter", f"--target={self._leader}", "--all", f"--wd={self.path(folder)}", *command],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def path(self, path: str) -> Path:
        """Return a path of the container as one of the host. No part of it may be an absolute link."""
        return Path(f"/proc/{self._leader}/root{path}")

    def begin_shutdown(self) -> None:
        """Begin to shut down, as a host does."""
        os.kill(self._container, signal.SIGTERM)

    def wait_for_end(self) -> None:
        """Wait until the machine is off."""
        self._unshare.wait(60)

    def end(self) -> None:
        """End the container at once, and remove what it leaves on the host."""
        if self._leader:
            with suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)  # systemd-nspawn then tidies up
            with suppress(subprocess.TimeoutExpired):
                self._unshare.wait(10)
        self._unshare.kill()
        self._unshare.wait()
        if not self._has_scope:
            for group in _control_groups():
                _remove(group)

    def _wait_for(self, condition, what):
        deadline = time.monotonic() + BOOT_S
        while not (value := condition()):
            if self._unshare.poll() is not None or time.monotonic() > deadline:
                end = self._log.read_text(errors="replace")[-1000:]
                raise BootError(f"systemd-nspawn does not boot here, waited for {what}: {end or 'it prints nothing'}")
            time.sleep(0.05)
        return value

    def _find_leader(self) -> int | None:
        """Return the pid of the container's process 1, and not of what prepares it."""
        for container in children_of(self._unshare.pid):
            for child in children_of(container):
                with suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                        self._container = container
                        return child
        return None

    def _has_booted(self) -> bool:
        return self.try_to("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"}


def children_of(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _control_groups() -> list[Path]:
    """Return the groups that systemd-nspawn makes in ours with --keep-unit."""
    mounts = {"name=systemd": "/sys/fs/cgroup/systemd", "": "/sys/fs/cgroup/unified"}
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        mounts = {"": "/sys/fs/cgroup"}
    groups = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers in mounts:
            groups += [Path(f"{mounts[controllers]}{own}", name) for name in ("payload", "supervisor")]
    return groups


def _remove(group: Path) -> None:
    """Remove a control group, unless another container uses it."""
    for folder, _, _ in os.walk(group, topdown=False):
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:  # the system removes the last process a moment after its end
            with suppress(OSError):
                Path(folder).rmdir()
                break
            time.sleep(0.05)
