"""Killed at any moment, whoever is killed: the next run finds a consistent state, and finishes.

A server that is stopped by ``immediate`` (SIGQUIT) or by SIGKILL loses what a crash of it loses: all that is in its own
memory, commits that nobody waited for included. What the system keeps in its page cache stays, as it would not if the
power went; that what was fsynced is then on the disk is PostgreSQL's promise and the disk's, and not tested here.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import kills
import pytest
from kills import DATABASES, PATIENCE, Repository, eventually

from atriz_database import catalog, server

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds whom to kill in /proc"),
]

# The seed of a round is the number in its test's name; -k with it, and the same ATRIZ_SEED, plays it again.
SEED = int(os.environ.get("ATRIZ_SEED", "1"))
KILLS = int(os.environ.get("ATRIZ_KILLS", "300"))
# What is run, and whether it begins with no database there; with a server that starts after a crash, where it says so.
COMMANDS = {
    "setup": True,
    "migrate": True,
    "rollback mextrack --to base": False,
    "rollback core --count 4": False,
    "reset --yes": False,
    "clean": False,
    "drop --yes": False,
}
WHOM = ("client", "worker", "group", "backend", "postmaster", "immediate", "client, the server starting")


@pytest.fixture(scope="module")
def repository() -> Iterator[Repository]:
    """Yield a copy of this repository with a server of its own."""
    with kills.running() as made:
        yield made


@pytest.fixture(scope="module")
def seconds(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Return how long each command takes that nobody disturbs."""
    taken = {}
    for command, empty in COMMANDS.items():
        repository.prepare(empty=empty)
        started = time.monotonic()
        succeed(repository, command, tmp_path_factory.mktemp("timed"))
        taken[command] = time.monotonic() - started
        repository.run("setup")
    return taken


def succeed(repository: Repository, command: str, folder: Path) -> None:
    process = repository.start(command, folder / "output")
    assert process.wait(PATIENCE) == 0, (folder / "output").read_text()


@pytest.mark.parametrize("seed", range(SEED * 1000, SEED * 1000 + KILLS))
def test_killed_at_any_moment_the_next_run_finishes(
    repository: Repository, seconds: dict[str, float], seed: int, tmp_path: Path
) -> None:
    """Whatever ran and whoever died: one `setup` later all four databases are as if nothing had been."""
    chance = random.Random(seed)
    command = chance.choice(list(COMMANDS))
    whom, _, starting = chance.choice(WHOM).partition(", ")
    moment = chance.uniform(0.0, 1.05) * seconds[command]
    told = f"seed {seed}: `atriz {command}`, {whom} killed after {moment:.3f} s"
    output = tmp_path / "output"
    try:
        repository.prepare(empty=COMMANDS[command])
        if starting:
            repository.crash(signal.SIGQUIT)
        process = repository.start(command, output)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            told = f"{told}: {kills.kill(repository, whom, process, chance)}"
        status, said = process.wait(PATIENCE), output.read_text()
        told = f"{told}\n{said}"
        assert status in (0, 1, -signal.SIGKILL), told
        assert "Traceback" not in said, told
        assert "defect" not in said, told
        # At once: whoever was left behind may still be at work.
        repository.run("setup")
        eventually(lambda: not kills.members(process.pid), f"processes are left: {told}")
        eventually(lambda: not repository.left(), f"connections or locks are left: {told}")
        assert repository.databases() == DATABASES, told
        found = repository.contents()
        for name, clean in repository.clean.items():
            differences = catalog.compare(clean["catalog"], found[name]["catalog"])
            assert differences == [], told
            assert found[name] == clean, told
    except BaseException as error:
        error.add_note(told)
        repository.wipe()
        raise


@pytest.mark.parametrize(
    ("command", "empty"), [("migrate", True), ("rollback pshop --count 2", False)], ids=["migrate", "rollback"]
)
def test_what_a_run_has_told_outlives_a_crash(
    repository: Repository, tmp_path: Path, command: str, empty: bool
) -> None:
    """The server dies the moment a run has ended well: nothing is lost, though no revision waited for the disk."""
    repository.prepare(empty=empty)
    succeed(repository, command, tmp_path)
    repository.crash(signal.SIGQUIT)
    server.start(repository.server)
    found = repository.contents()
    if empty:
        # But for what the seeds do: rows, and partitions for them.
        whole = catalog.KINDS - {"partition"}
        for name, clean in repository.clean.items():
            assert catalog.compare(clean["catalog"], found[name]["catalog"], whole) == []
            assert all(found[name][what] == clean[what] for what in ("label", "version", "history"))
    else:
        undone = [revision for revision, net, last in found["pshop_db"]["history"] if (net, last) == (0, "downgrade")]
        assert len(undone) == 2
        assert found["pshop_db"]["version"] not in (repository.clean["pshop_db"]["version"], [])
    repository.run("setup")
    assert repository.contents() == repository.clean
