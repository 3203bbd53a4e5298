"""A second PostgreSQL, on TCP with password authentication, as a team's server is."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from debian import Program

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

    def url(self, database: str = "postgres", *, port: int | None = None, **parameters: str) -> str:
        """Return the URL of a database on it, through a proxy that listens on `port` if one is given."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        password = quote(self.password, safe="")
        return f"postgresql://{self.user}:{password}@127.0.0.1:{port or self.port}/{database}{query}"


@contextmanager
def running(
    programs: Path | None = None,
    *,
    program: Program | None = None,
    settings: Mapping[str, object] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Iterator[Second]:
    """Yield a server that is stopped afterwards, its data removed.

    :param programs: the folder of the programs that it is made of; the wheel's where it isn't given.
    :param program: instead of that, the server's program, with libraries of its own.
    :param settings: what it is started with besides, the value without a space.
    :param files: by name, what is written into its data directory before it is started, readable by it alone.
    """
    home = Path(tempfile.mkdtemp(prefix="atriz-second-"))
    home.chmod(0o755)
    server = embedded.Server(home, embedded.of(home).user)
    programs = program.path.parent if program else programs or embedded._programs(server)
    before = ["env", *(f"{name}={value}" for name, value in program.environ.items())] if program else []
    password_file = home / "password"
    password_file.write_text(PASSWORD)
    embedded._make_folder(server.data, server)
    if os.geteuid() == 0:
        os.chown(password_file, server.user.pw_uid, server.user.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -p {port}"
    options += "".join(f" -c {name}={value}" for name, value in (settings or {}).items())

    def run(name: str, *words: object) -> None:
        done = embedded._run(server, [*before, programs / name, *words])
        assert done.returncode == 0, done.stdout

    def start() -> None:
        run("pg_ctl", "start", "-D", server.data, "-l", server.log, "-w", "-o", options)

    def kill() -> None:
        run("pg_ctl", "stop", "-D", server.data, "-m", "immediate")

    try:
        run("initdb", "-D", server.data, "-U", "team", "--auth=scram-sha-256", f"--pwfile={password_file}", "-N")
        for name, content in (files or {}).items():
            path = server.data / name
            path.touch(mode=0o600)
            path.write_bytes(content)
            if os.geteuid() == 0:
                os.chown(path, server.user.pw_uid, server.user.pw_gid)
        start()
        yield Second(port, start=start, kill=kill, data=server.data, owner=server.user.pw_uid)
    finally:
        embedded._run(server, [*before, programs / "pg_ctl", "stop", "-D", server.data, "-m", "immediate"])
        shutil.rmtree(home)
