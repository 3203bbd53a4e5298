"""The passwords that `grant` has made and `env --write` has yet to put into ``.env`` files.

Each is a file of its own, which only its owner can read, in ``.atriz/passwords`` of the checkout; git is told to leave
that folder alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from atriz_database.errors import SettingsError
from atriz_database.url import DatabaseURL


def read(root: Path, server: DatabaseURL, role: str) -> str | None:
    """Return the password of a role, `None` where none was made from this checkout.

    :param root: the workspace's folder.
    :param server: a URL on the server that the role belongs to.

    Raise `SettingsError` if it is there and cannot be read.
    """
    path = _path(root, server, role)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}. `atriz grant --rotate` makes a new one.") from None


def write(root: Path, server: DatabaseURL, role: str, password: str | None) -> None:
    """Keep the password of a role; `None` forgets it. The file is replaced as a whole.

    Raise `SettingsError` if it cannot be written.
    """
    path = _path(root, server, role)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if password is None:
            path.unlink(missing_ok=True)
            return
        _make_folder(root / ".atriz" / "passwords")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        beside.unlink(missing_ok=True)
        beside.touch(mode=0o600)
        beside.write_text(password, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror}. The password of {role} goes there until `atriz env --write` "
            "takes it; no password was changed."
        ) from None


def _path(root: Path, server: DatabaseURL, role: str) -> Path:
    host, port, _ = server.place
    # A host may be a socket's folder, and a role be called anything.
    return root / ".atriz" / "passwords" / quote(f"{host}:{port}", safe="") / quote(role, safe="")


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ignored = folder / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n", encoding="utf-8")
