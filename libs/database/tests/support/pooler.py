"""A real PgBouncer in front of a test's server, started on loopback and stopped afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import debian
import psycopg
import pytest
from debian import Program

from atriz_database import server as embedded
from atriz_database.url import DatabaseURL

_START_SECONDS = 10.0


def program() -> Program:
    """Return PgBouncer: the machine's own, or Debian's, which CI fetches. Skip the test where there is none."""
    # Debian has it where a user's PATH does not lead.
    found = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    return debian.program("pgbouncer", "usr/sbin/pgbouncer", installed=Path(found) if found else None)


@dataclass(frozen=True)
class Pooler:
    """Where PgBouncer listens."""

    port: int
    user: str

    def url(self, database: str) -> str:
        """Return the URL of a database through it."""
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{database}"


@contextlib.contextmanager
def running(server: DatabaseURL, **settings: object) -> Iterator[Pooler]:
    """Yield a PgBouncer in front of `server` for all of its databases, with these settings besides.

    :param server: on TCP, with user and password.

    It is reached without a password, on loopback, for as long as the test.
    """
    found = program()
    given = server.parameters
    home = Path(tempfile.mkdtemp(prefix="atriz-pooler-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users = home / "users.txt"
    password = given["password"].replace('"', '""')
    users.write_text(f'"{given["user"]}" "{password}"\n')
    lines: dict[str, object] = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "trust",
        "auth_file": users,
        **settings,
    }
    config = home / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host={given['host']} port={given['port']}\n[pgbouncer]\n"
        + "".join(f"{name} = {value}\n" for name, value in lines.items())
    )
    # Like PostgreSQL, it refuses to run as root.
    user = embedded.of(home).user
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    for path in (home, users, config):
        if identity:
            os.chown(path, user.pw_uid, user.pw_gid)
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [found.path, config], env={**os.environ, **found.environ}, stdout=output, stderr=output, **identity
        )
    try:
        pooler = Pooler(port, given["user"])
        _wait(process, pooler, log)
        yield pooler
    finally:
        # At once, whoever is connected.
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=_START_SECONDS)
        shutil.rmtree(home)


def _wait(process: subprocess.Popen[bytes], pooler: Pooler, log: Path) -> None:
    """Return when it answers, and has reached the server."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(pooler.url("postgres"), connect_timeout=2).close()
            return
    pytest.fail(f"PgBouncer does not answer: {log.read_text()}")
