"""Where the keys of access tokens come from, and how an app gets to core's database.

The only part of this package that reads the process environment. ``AUTH_KEYS``, ``AUTH_ISSUER``, ``AUTH_AUDIENCE`` and
``APP_ENV``: there, then in the ``.env`` of the app, of core, and of the root. Without AUTH_KEYS, outside of production,
a key is made once for the checkout.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from atriz_core.tokens import Keys
from atriz_database import settings, workspace
from atriz_database.errors import AtrizError, SettingsError, WorkspaceError
from atriz_database.url import DatabaseURL

_HOW = "python -c \"import secrets; print('AUTH_KEYS=2026-a:' + secrets.token_urlsafe(32))\""
VARIABLE = "SHARED_DATABASE_URL"
DEVELOPMENT_FILE = Path(".atriz", "auth-keys")
"""Where the key of a checkout is, from its root; git leaves the folder alone."""


def keys(environ: Mapping[str, str] | None = None, package: str = "core") -> Keys:
    """Return the keys that access tokens are signed and verified with.

    :param environ: the process environment, `os.environ` where not given.
    :param package: the app's name, its folder's.

    Raise `SettingsError` if AUTH_KEYS cannot be used, or is missing in production or outside of a workspace.
    """
    root = _root()
    values = _values(root, environ, package)
    issuer, audience = values.get("AUTH_ISSUER") or "atriz", values.get("AUTH_AUDIENCE") or "atriz"
    text = values.get("AUTH_KEYS")
    if not text:
        if is_production(environ, package):
            raise SettingsError(
                "AUTH_KEYS is not set, and APP_ENV is production. Make a key, and give the same one to every app: "
                f"{_HOW}"
            )
        if root is None:
            raise SettingsError(
                f"AUTH_KEYS is not set, and there is no workspace around {Path.cwd()} to keep a key for development "
                f"in. Make one: {_HOW}"
            )
        text = _development_keys(root / DEVELOPMENT_FILE)
    try:
        return Keys.parse(text, issuer, audience)
    except ValueError as error:
        raise SettingsError(f"AUTH_KEYS cannot be used: {error}. A new key: {_HOW}") from None


def shared_url(package: str, environ: Mapping[str, str] | None = None) -> DatabaseURL | None:
    """Return where an app finds core's database by its own ``.env``: there it signs in with a role of its own.

    `None` where the process environment says it for all, or the app's ``.env`` says nothing: then core's settings hold.

    :param package: the app's name, its folder's.

    Raise `SettingsError` if the URL cannot be used, `WorkspaceError` if there is no such package.
    """
    environ = os.environ if environ is None else environ
    root = _root()
    if root is None or any(name in environ for name in (VARIABLE, f"CORE_{VARIABLE}")):
        return None
    value = settings.read_file(workspace.load(root).package(package).folder / ".env").get(VARIABLE)
    if value is None:
        return None
    try:
        return DatabaseURL.parse(value.text)
    except SettingsError as error:
        raise SettingsError(f"{value} {error}.") from None


def is_production(environ: Mapping[str, str] | None = None, package: str = "core") -> bool:
    """Return whether APP_ENV says production; of an app that stands alone its own ``.env`` says it.

    :param package: the app's name, its folder's.

    Raise `SettingsError` if it says something unknown.
    """
    environment = _values(_root(), environ, package).get("APP_ENV", "development")
    if environment not in settings.ENVIRONMENTS:
        raise SettingsError(f"APP_ENV is {environment!r}. It must be {', '.join(settings.ENVIRONMENTS)}.")
    return environment == "production"


@contextmanager
def noting(faults: list[str]) -> Iterator[None]:
    """Add what is wrong with the settings to a list, so that all of it can be told at once."""
    try:
        yield
    except AtrizError as error:
        faults.append(str(error))


def _values(root: Path | None, environ: Mapping[str, str] | None, package: str) -> dict[str, str]:
    files = []
    if root is not None:
        folders = {each.name: each.folder for each in workspace.load(root).packages}
        own = [folders[name] for name in dict.fromkeys(("core", package)) if name in folders]
        files = [settings.read_file(folder / ".env") for folder in (root, *own)]
    held = {name: value.text for file in files for name, value in file.items()}
    return {**held, **(os.environ if environ is None else environ)}


def _root() -> Path | None:
    with suppress(WorkspaceError):
        return workspace.find_root(Path.cwd())
    return None


def _development_keys(path: Path) -> str:
    """Return the keys of a checkout, made by whichever process comes first."""
    with suppress(FileNotFoundError):
        return path.read_text().strip()
    own = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"development:{secrets.token_urlsafe(32)}\n")
        # Whole or not at all, and never over one that is there.
        with suppress(FileExistsError):
            os.link(own, path)
        own.unlink()
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"No key for development could be kept in {path}: {error.strerror}. Set AUTH_KEYS: {_HOW}"
        ) from None
