"""The verb that shows and writes settings: env."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from atriz_database import passwords, roles, server, settings
from atriz_database.errors import SettingsError
from atriz_database.settings import Target
from atriz_database.url import DatabaseURL
from atriz_database.workspace import Package, Workspace

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
    """What was done to one ``.env`` file; nothing where all was there."""

    path: Path
    names: tuple[str, ...]
    """The variables that were added."""
    made: bool
    """Whether the file is new."""
    renewed: tuple[str, ...] = ()
    """Variables whose URL has a new password."""
    kept: tuple[str, ...] = ()
    """Variables whose URL signs in as somebody else than the role that `grant` has made for it."""


def write_environment(workspace: Workspace, name: str | None = None) -> list[Written]:
    """Write what the settings in force give to the ``.env`` files that lack it; no other value that is there changes.

    The root file gets the server that PG* name in the process environment; a package's gets APP_ENV, its URL, and the
    URLs of what it depends on. After `grant` these sign in as the application's role, and the ``DIRECT_`` form as the
    owner; a new password of theirs replaces the old one. For the embedded server neither a URL nor PG* is written, so
    that it stays in force. A new file is for its owner alone, and one that is there is closed to everybody but its
    owner and group when something is written: they hold passwords.

    Raise `SettingsError` if a value cannot be used, or a file cannot be written.
    """
    packages = workspace.select(name)
    targets = _both(workspace, packages)
    server_values = settings.process_values(_SERVER) if settings.named_server() is not None else {}
    written = [_add(workspace.root / ".env", server_values)] if server_values else []
    for package in packages:
        application, direct = targets[package.name]
        values = {"APP_ENV": application.environment}
        given: dict[str, DatabaseURL] = {}
        own = roles.of(direct.database)
        needed = _both(workspace, [each for each in workspace.packages if each.name in package.requires])
        for variable, url, place, role in (
            *((each.package.variable, each.url, there.url, own.app) for each, there in needed.values()),
            (package.variable, application.url, direct.url, own.app),
            (f"DIRECT_{package.variable}", direct.url, direct.url, own.owner),
        ):
            if url is None or place is None:
                continue
            password = passwords.read(workspace.root, place, role)
            if password is not None:
                given[variable] = url.signing_in(role, password)
                values[variable] = given[variable].text(secrets=True)
            elif role == own.app:
                values[variable] = url.text(secrets=True)
        written.append(_add(package.folder / ".env", values, given))
    return written


def _both(workspace: Workspace, packages: Sequence[Package]) -> dict[str, tuple[Target, Target]]:
    """Return where each package's application and its administration find the database."""
    found = (settings.resolve(workspace, packages, administrative=each) for each in (False, True))
    return {pair[0].package.name: pair for pair in zip(*found, strict=True)}


def _add(path: Path, values: Mapping[str, str], given: Mapping[str, DatabaseURL] | None = None) -> Written:
    """Append the lines that a file lacks; it is replaced as a whole, so that a crash leaves the old or the new one.

    :param given: the URLs of roles whose password may be another one in the file.
    """
    present = settings.read_file(path)
    missing = {name: value for name, value in values.items() if name not in present}
    made = not path.exists()
    text = old = "" if made else path.read_text(encoding="utf-8-sig")
    renewed, kept = [], []
    for name, url in (given or {}).items():
        if name in missing:
            continue
        there = DatabaseURL.parse(present[name].text)
        if there.parameters.get("user") != url.parameters["user"]:
            kept.append(name)
        elif there.parameters.get("password") != url.parameters["password"]:
            again = there.signing_in(url.parameters["user"], url.parameters["password"])
            text = _replaced(text, name, again.text(secrets=True))
            renewed.append(name)
    lines = "".join(f"{name}={_quoted(value)}\n" for name, value in missing.items())
    text += ("" if not text or text.endswith("\n") or not lines else "\n") + lines
    if text != old:
        beside = path.with_name(f".env.{os.getpid()}")
        try:
            beside.touch(mode=0o600)
            beside.write_text(text, encoding="utf-8")
            if not made:
                # A copy of .env.example may be read by everybody on the machine. Who is in its group stays as it was.
                beside.chmod(path.stat().st_mode & 0o770)
            beside.replace(path)
        except OSError as error:
            raise SettingsError(f"{path} cannot be written: {error.strerror}.") from None
    return Written(path, tuple(missing), made and bool(missing), tuple(renewed), tuple(kept))


def _replaced(text: str, name: str, value: str) -> str:
    """Return the text of a file with another value for a variable, in the line that counts."""
    from dotenv.parser import parse_stream

    parts = [(binding.key, binding.original.string) for binding in parse_stream(StringIO(text))]
    index = max(i for i, (key, _) in enumerate(parts) if key == name)
    before, _, rest = parts[index][1].partition(name)
    end = "\n" if rest.endswith("\n") else ""
    parts[index] = (name, f"{before}{name}={_quoted(value)}{end}")
    return "".join(part for _, part in parts)


def _quoted(value: str) -> str:
    """Return the value as python-dotenv reads it back."""
    if value.replace("_", "").isalnum():
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
