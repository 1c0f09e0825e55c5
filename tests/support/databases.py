"""Databases for tests: SQLite in a file, and a PostgreSQL of the test's own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


class Postgres:
    """A server that only listens at a socket in its own folder. Debian has its programs, which do not run as root."""

    def __init__(self) -> None:
        if not BINARIES:
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        self._folder = tempfile.mkdtemp(prefix="fb-pg-")  # a short path, for the socket
        self._user: dict[str, int] = {}
        if os.getuid() == 0:
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            self._user = {"user": user.pw_uid, "group": user.pw_gid}
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        data = f"{self._folder}/data"
        self._run("initdb", "-D", data, "-U", "test", "-A", "trust", "--no-sync")
        flags = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync=off"
        flags += " -c max_prepared_transactions=10"
        self._run("pg_ctl", "-D", data, "-w", "-t", "120", "-l", f"{self._folder}/log", "-o", flags, "start")
        self.uri = f"postgresql+psycopg://test@/postgres?host={self._folder}"

    def stop(self) -> None:
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-m", "immediate", "stop")
        shutil.rmtree(self._folder)

    def _run(self, program: str, *args: str) -> None:
        # Not a pipe: the server would keep it open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [BINARIES[0] / program, *args], stdout=output, stderr=output, cwd="/", check=False, **self._user
            )
            output.seek(0)
            assert done.returncode == 0, output.read().decode()
