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

import psycopg
import pytest

from atriz_database import server as embedded
from atriz_database.url import DatabaseURL

_START_SECONDS = 10.0


@dataclass(frozen=True)
class Program:
    """PgBouncer's program, and the folder of the libraries that came with it."""

    path: Path
    libraries: Path | None = None

    @property
    def environ(self) -> dict[str, str]:
        """What its process is started with."""
        return {**os.environ, "LD_LIBRARY_PATH": str(self.libraries)} if self.libraries else dict(os.environ)

    def works(self) -> bool:
        """Whether it starts: its libraries are there."""
        done = subprocess.run([self.path, "--version"], env=self.environ, capture_output=True)
        return done.returncode == 0


def program() -> Program:
    """Return PgBouncer's program: the machine's own, or Debian's, which CI fetches. Skip the test where there is none.

    In CI (the variable CI is set) a missing one fails the test.
    """
    # Debian has it where a user's PATH does not lead.
    found = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if found is not None:
        return Program(Path(found))
    cache = Path(tempfile.gettempdir()) / f"atriz-pgbouncer-{os.geteuid()}"
    in_ci = bool(os.environ.get("CI"))
    if in_ci and not cache.exists():
        _fetch(cache)
    fetched = _in(cache)
    if fetched is not None and fetched.works():
        return fetched
    text = "needs PgBouncer: install pgbouncer, or set CI=true where there is apt-get, which then fetches it"
    if in_ci:
        pytest.fail(f"{text}. This is CI, and it could not be had; {cache} holds what could.")
    pytest.skip(text)


def _in(folder: Path) -> Program | None:
    path = folder / "usr" / "sbin" / "pgbouncer"
    if not path.exists():
        return None
    libraries = next((found.parent for found in folder.rglob("libcares.so.2")), None)
    return Program(path, libraries)


def _fetch(cache: Path) -> None:
    """Unpack Debian's package and its libraries into a folder. Nothing is installed, and no service is started."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return
    unfinished = Path(tempfile.mkdtemp(prefix="atriz-pgbouncer-"))
    unfinished.chmod(0o755)
    try:
        if not _download(unfinished):
            # Lists of its own: those of the machine may be missing or old, and only root may renew them.
            (unfinished / "lists" / "partial").mkdir(parents=True)
            options = ("-o", f"Dir::State::Lists={unfinished / 'lists'}", "-o", "APT::Sandbox::User=")
            subprocess.run(["apt-get", *options, "-qq", "update"], capture_output=True)
            _download(unfinished, *options)
        for package in unfinished.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, unfinished], check=True, capture_output=True)
        with contextlib.suppress(OSError):  # Another process was as quick.
            unfinished.rename(cache)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _download(folder: Path, *options: str) -> bool:
    """Fetch the package, and those of its libraries that a machine may lack; return whether that went well."""
    listed = subprocess.run(["apt-cache", *options, "depends", "pgbouncer"], capture_output=True, text=True)
    needed = {line.split()[-1] for line in listed.stdout.splitlines() if line.lstrip().startswith("Depends: lib")}
    # Those that stand on the C library and nothing else; the others are everywhere.
    libraries = sorted(name for name in needed if "cares" in name.replace("-", "") or "event" in name)
    command = ["apt-get", *options, "-qq", "download", "pgbouncer", *libraries]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


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
        process = subprocess.Popen([found.path, config], env=found.environ, stdout=output, stderr=output, **identity)
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
