"""A second PostgreSQL, on TCP with password authentication, as a team's server is."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atriz_database import server as embedded

# All that has a meaning in a URL, in a format string, or in a shell.
PASSWORD = "p%40@s/s w:o'r\"d$%s"


@dataclass(frozen=True)
class Second:
    """Where the server listens, and as whom to sign in."""

    port: int
    user: str = "team"
    password: str = PASSWORD
    start: Callable[[], None] = lambda: None
    """Starts it again after it was killed."""
    kill: Callable[[], None] = lambda: None
    """Takes it away at once, as a loss of power would."""
    data: Path = Path()
    """Where its files are; one named standby.signal makes it a standby when it starts."""
    owner: int = 0
    """The id of the system user it runs as."""

    @property
    def environ(self) -> dict[str, str]:
        """The variables that name it."""
        return {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": self.user, "PGPASSWORD": self.password}


@contextmanager
def running(programs: Path | None = None) -> Iterator[Second]:
    """Yield a server that is stopped afterwards, its data removed; of the given programs, or the wheel's."""
    home = Path(tempfile.mkdtemp(prefix="atriz-second-"))
    home.chmod(0o755)
    server = embedded.Server(home, embedded.of(home).user)
    programs = programs or embedded._programs(server)
    password_file = home / "password"
    password_file.write_text(PASSWORD)
    embedded._make_folder(server.data, server)
    if os.geteuid() == 0:
        os.chown(password_file, server.user.pw_uid, server.user.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -p {port}"

    def run(program: str, *words: object) -> None:
        done = embedded._run(server, [programs / program, *words])
        assert done.returncode == 0, done.stdout

    def start() -> None:
        run("pg_ctl", "start", "-D", server.data, "-l", server.log, "-w", "-o", options)

    def kill() -> None:
        run("pg_ctl", "stop", "-D", server.data, "-m", "immediate")

    try:
        run("initdb", "-D", server.data, "-U", "team", "--auth=scram-sha-256", f"--pwfile={password_file}", "-N")
        start()
        yield Second(port, start=start, kill=kill, data=server.data, owner=server.user.pw_uid)
    finally:
        embedded._run(server, [programs / "pg_ctl", "stop", "-D", server.data, "-m", "immediate"])
        shutil.rmtree(home)
