"""The verb that shows and writes settings: env."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from atriz_database import server, settings
from atriz_database.errors import SettingsError
from atriz_database.workspace import Workspace

_SERVER = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGUSER", "PGPASSWORD", "PGSSLMODE", "PGSSLROOTCERT")


@dataclass(frozen=True, slots=True)
class Origin:
    """One setting of one package: its value, secrets masked, and where it comes from."""

    package: str
    name: str
    value: str
    origin: str


def environment(workspace: Workspace, name: str | None = None) -> list[Origin]:
    """Return every setting and its origin. Asks no server.

    Raise `SettingsError` if a value cannot be used.
    """
    packages = workspace.select(name)
    rows = []
    embedded = None
    direct = settings.resolve(workspace, packages)
    for target, administrative in zip(settings.resolve(workspace, packages, administrative=False), direct, strict=True):
        package = target.package
        rows.append(Origin(package.name, "APP_ENV", target.environment, target.environment_origin or "the default"))
        for label_, each in ((package.variable, target), (f"DIRECT_{package.variable}", administrative)):
            if each is administrative and administrative.url == target.url:
                continue
            if each.url is None:
                embedded = embedded or server.of(workspace.root)
                each = each.at(embedded.url)
            rows.append(Origin(package.name, label_, str(each.url), each.origin))
    return rows


@dataclass(frozen=True, slots=True)
class Written:
    """What was added to one ``.env`` file; nothing where all was there."""

    path: Path
    names: tuple[str, ...]
    made: bool
    """Whether the file is new."""


def write_environment(workspace: Workspace, name: str | None = None) -> list[Written]:
    """Write what the settings in force give to the ``.env`` files that lack it; a value that is there never changes.

    The root file gets the server that PG* name in the process environment; a package's gets APP_ENV, its URL, and the
    URLs of what it depends on. For the embedded server neither a URL nor PG* is written, so that it stays in force.
    The files are for their owner alone: they hold passwords.

    Raise `SettingsError` if a value cannot be used, or a file cannot be written.
    """
    packages = workspace.select(name)
    targets = {target.package.name: target for target in settings.resolve(workspace, packages, administrative=False)}
    server_values = settings.process_values(_SERVER) if settings.named_server() is not None else {}
    written = [_add(workspace.root / ".env", server_values)] if server_values else []
    for package in packages:
        target = targets[package.name]
        values = {"APP_ENV": target.environment}
        needed = [each for each in workspace.packages if each.name in package.requires]
        for each in (*settings.resolve(workspace, needed, administrative=False), target):
            if each.url is not None:
                values[each.package.variable] = each.url.text(secrets=True)
        written.append(_add(package.folder / ".env", values))
    return written


def _add(path: Path, values: dict[str, str]) -> Written:
    """Append the lines that a file lacks; it is replaced as a whole, so that a crash leaves the old or the new one."""
    present = settings.read_file(path)
    missing = {name: value for name, value in values.items() if name not in present}
    made = not path.exists()
    if missing:
        old = "" if made else path.read_text(encoding="utf-8")
        lines = "".join(f"{name}={_quoted(value)}\n" for name, value in missing.items())
        beside = path.with_name(f".env.{os.getpid()}")
        try:
            beside.touch(mode=0o600)
            beside.write_text(old + ("" if not old or old.endswith("\n") else "\n") + lines, encoding="utf-8")
            if not made:
                beside.chmod(path.stat().st_mode & 0o777)
            beside.replace(path)
        except OSError as error:
            raise SettingsError(f"{path} cannot be written: {error.strerror}.") from None
    return Written(path, tuple(missing), made and bool(missing))


def _quoted(value: str) -> str:
    """Return the value as python-dotenv reads it back."""
    if value.replace("_", "").isalnum():
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
