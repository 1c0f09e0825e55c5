"""Containers without Docker: the command of an image as process 1 of new namespaces, on a root that is read-only."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.hosts import Host
from support.waiting import wait_until

PROJECT = Path(__file__).parents[2]

# Mounts the root of a container in $1 and starts its process there. The descriptions of the mounts are lines on stdin:
# `tmpfs`, its options and its place, or `bind`, the source and the place.
_SCRIPT = """
root=$1 user=$2 folder=$3
shift 3
mount -t tmpfs -o mode=755 root "$root"
while read -r kind what place; do
    target=$root$place
    if [ "$kind" = tmpfs ]; then
        mkdir -p "$target"
        mount -t tmpfs -o "$what" tmpfs "$target"
    elif [ -L "$what" ]; then
        cp -P "$what" "$target"
    else
        if [ -d "$what" ]; then mkdir -p "$target"; else test -e "$target" || : >"$target"; fi
        mount --bind "$what" "$target"
        mount -o remount,bind,ro "$target" 2>/dev/null || : # not a device
    fi
done
mkdir -p "$root/proc" "$root/sys"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -o remount,ro "$root"
exec chroot "$root" setpriv --reuid="$user" --regid="$user" --groups="$user" \
    --no-new-privs --bounding-set=-all --inh-caps=-all env -i -C "$folder" "$@" </dev/null
"""


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Read a Dockerfile as (instruction, rest of the line) pairs."""
    text = re.sub(r"(?m)^#.*\n", "", dockerfile.read_text()).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@dataclass
class Image:
    """What a Dockerfile says of its container, and which files of this machine stand for its own."""

    dockerfile: Path
    files: Mapping[str, Path] = field(default_factory=dict)

    def last(self, name: str) -> str:
        return dict(instructions(self.dockerfile)).get(name, "")

    def words(self, name: str) -> list[str]:
        """Return an instruction's list of arguments; empty without one. The shell form is not JSON, and raises."""
        rest = self.last(name)
        return json.loads(rest[rest.index("[") :]) if rest else []

    @property
    def user(self) -> int:
        return int(self.last("USER").split(":")[0])

    @property
    def env(self) -> dict[str, str]:
        own = dict(word.split("=", 1) for word in self.last("ENV").split())
        return own | {"PATH": own.get("PATH", "$PATH").replace("$PATH", "/usr/local/bin:/usr/bin:/bin")}


class Container:
    """A running container in the network of a host. ``volumes`` are its writable folders, each a tmpfs."""

    def __init__(
        self,
        image: Image,
        host: Host,
        folder: Path,
        *,
        env: Mapping[str, str],
        volumes: Sequence[str],
        command: Sequence[str] = (),
        hosts: str = "",
    ) -> None:
        folder.mkdir()
        (folder / "root").mkdir()
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        self.log = folder / "log"
        self._env = [f"{key}={value}" for key, value in (image.env | env).items()]
        self._user = str(image.user)
        self._folder = image.last("WORKDIR") or "/"
        words = list(command) or [*image.words("ENTRYPOINT"), *image.words("CMD")]
        unshare = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork"]
        script = ["sh", "-euc", _SCRIPT, "sh", str(folder / "root"), self._user, self._folder]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*host.under, *unshare, *script, *self._env, *words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        mounts = _mounts(image, folder / "hosts", volumes)
        self.process.stdin.write("".join(f"{mount}\n" for mount in mounts).encode())
        self.process.stdin.close()
        # unshare forks: its child is process 1.
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.pid = int(wait_until(children.read_text, "process 1 has started").split()[0])

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as a probe does."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--root"]
        user = ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]
        return subprocess.run(
            [*inside, *user, "env", "-i", "-C", self._folder, *self._env, *command], capture_output=True, text=True
        )

    def signal(self, number: signal.Signals) -> None:
        """Send process 1 a signal from outside."""
        os.kill(self.pid, number)

    def passes(self, *probe: str) -> bool:
        return self.exec(*probe).returncode == 0

    def end(self) -> None:
        """Clean up after a passed or failed test."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)  # and so all its processes
        self.process.wait()


def _mounts(image: Image, hosts: Path, volumes: Sequence[str]) -> list[str]:
    """Return the mounts: this machine's system, the interpreter and the project, read-only, and the volumes."""
    mounts = [f"bind {path} {path}" for path in map(Path, ("/usr", "/bin", "/lib", "/lib64", "/etc")) if path.exists()]
    mounts += ["tmpfs mode=755 /dev", "tmpfs mode=1777 /dev/shm"]
    mounts += [f"bind /dev/{name} /dev/{name}" for name in ("null", "zero", "urandom", "fd")]
    # As an emptyDir with the fsGroup of the image's user.
    mounts += [f"tmpfs mode=2777,gid={image.user} {place}" for place in volumes]
    mounts.append(f"bind {hosts} /etc/hosts")
    mounts += [f"bind {path} {path}" for path in {sys.base_prefix, sys.prefix, str(PROJECT)}]
    return mounts + [f"bind {path} {place}" for place, path in image.files.items()]


def require_containers() -> None:
    """Skip the test where no container can be started."""
    tools = ("unshare", "nsenter", "setpriv", "chroot", "mount")
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"needs {', '.join(missing)}")
    trial = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        text=True,
    )
    if trial.returncode != 0:
        pytest.skip(f"no new namespaces here (are you root?): {trial.stderr.strip()}")
