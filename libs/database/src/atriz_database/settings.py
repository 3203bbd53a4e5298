"""Where each database's URL and environment come from. The only place that reads the process environment.

The levels, the upper one wins; the full table of cases is ``docs/settings.md`` and ``tests/test_settings.py``:

1. process environment: the package's variable with its name before it (``MEXTRACK_DATABASE_URL``), then plain
2. the package's own ``.env``: the variable
3. a server named by ``PG*`` (process environment, then root ``.env``) with the database's name from the manifest
4. the embedded local server, never with APP_ENV=production
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from atriz_database.errors import SettingsError
from atriz_database.url import DatabaseURL, is_port
from atriz_database.workspace import Package, Workspace, prefix

ENVIRONMENTS = ("development", "test", "production")
PROCESS = "the process environment"
EMBEDDED = "the embedded server"
# The others may end in a connection without TLS, whether or not the server could do better.
_DECIDED = ("disable", "require", "verify-ca", "verify-full")
# PGUSER alone, or PGPORT, says how to reach a server and not which.
_NAMES_A_SERVER = ("PGHOST", "PGHOSTADDR", "PGSERVICE")


@dataclass(frozen=True, slots=True)
class Value:
    """The text of one variable and where it stands."""

    name: str
    text: str = field(repr=False)  # it may hold a password
    origin: str

    def __str__(self) -> str:
        return f"{self.name} in {self.origin}"


@dataclass(frozen=True, slots=True)
class Target:
    """The database that a verb means when it says a package's name."""

    package: Package
    url: DatabaseURL | None
    """`None` until the embedded server, which no setting names, is known to run."""
    origin: str
    """Where the URL was read: a variable and a file, or the embedded server."""
    environment: str
    """``development``, ``test`` or ``production``."""
    environment_origin: str | None
    """Where APP_ENV stands, `None` where it stands nowhere and development is assumed."""

    @property
    def database(self) -> str:
        """The database's name."""
        return self.url.database if self.url else self.package.database

    def at(self, server: DatabaseURL) -> Target:
        """Return the target on `server`, for one that names no server of its own."""
        return replace(self, url=server.with_database(self.package.database))


def resolve(
    workspace: Workspace,
    packages: Sequence[Package],
    environ: Mapping[str, str] | None = None,
    *,
    administrative: bool = True,
) -> tuple[Target, ...]:
    """Return where the database of each package is.

    :param packages: the packages of one run, which must not contradict one another.
    :param environ: the process environment, `os.environ` where not given.
    :param administrative: whether the ``DIRECT_`` form of a variable goes before the plain one.

    Raise `SettingsError` if a value cannot be used, or two of them contradict each other.
    """
    environ = os.environ if environ is None else environ
    if environ.get("PGSERVICE") == "":
        # libpq takes a blank one for a service without a name, and nothing that is given to it changes its mind.
        raise SettingsError(f"PGSERVICE in {PROCESS} is blank. Unset it, or give the name of a service.")
    files = _Files(workspace.root)
    _refuse_ambiguous_variables(packages, environ, administrative)
    targets = tuple(_target(package, files, environ, administrative) for package in packages)
    _refuse_one_database_twice(targets)
    _refuse_two_environments(targets)
    if administrative:
        _refuse_other_shared_database(workspace, packages, files, environ)
    return targets


def without_workspace(
    package: str, variable: str, environ: Mapping[str, str] | None = None
) -> tuple[DatabaseURL, bool]:
    """Return where a package's database is by the process environment alone, and whether this is production.

    :param variable: the variable of its URL, which no manifest is there to say.

    Raise `SettingsError` if no variable leads to a database.
    """
    environ = os.environ if environ is None else environ
    environment = environ.get("APP_ENV", "development")
    if environment not in ENVIRONMENTS:
        raise _not_an_environment(Value("APP_ENV", environment, PROCESS))
    names = (f"{prefix(package)}_{variable}", variable)
    for name in names:
        if name in environ:
            value = Value(name, environ[name], PROCESS)
            break
    else:
        raise SettingsError(
            f"No database is named for {package}. Looked for {' and '.join(names)} in {PROCESS}, and not for .env "
            f"files, because there is no workspace around {Path.cwd()}. Set one of the two."
        )
    try:
        url = DatabaseURL.parse(value.text)
    except SettingsError as error:
        raise SettingsError(f"{value} {error}.") from None
    _refuse_plain(url, environment == "production", str(value), environ)
    return url, environment == "production"


def usable(url: str | DatabaseURL, *, production: bool | None, environ: Mapping[str, str] | None = None) -> DatabaseURL:
    """Return the URL that an application gave.

    :param production: whether TLS is needed to another host, `None` to ask APP_ENV in the process environment.

    Raise `SettingsError` if it cannot be parsed, or leads to another host without TLS in production.
    """
    environ = os.environ if environ is None else environ
    if isinstance(url, str):
        try:
            url = DatabaseURL.parse(url)
        except SettingsError as error:
            raise SettingsError(f"The URL {error}.") from None
    elif not isinstance(url, DatabaseURL):
        # Mostly None, of a variable that is not set; and whatever it is, it may hold a password.
        raise SettingsError(f"The URL is a {type(url).__name__}; give a text such as postgresql://user@host:5432/name.")
    _refuse_plain(url, environ.get("APP_ENV") == "production" if production is None else production, "", environ)
    return url


def _refuse_plain(url: DatabaseURL, production: bool, origin: str, environ: Mapping[str, str]) -> None:
    """Refuse a URL of production that leads to another host and may do so without TLS."""
    if not production or url.is_local or url.parameters.get("gssencmode") == "require":
        return
    mode = url.parameters.get("sslmode") or environ.get("PGSSLMODE") or ""
    if mode in _DECIDED:
        return
    how = f"sslmode={mode} falls" if mode else "without sslmode libpq falls"
    where = f" (from {origin})" if origin else ""
    raise SettingsError(
        f"{url}{where} leads to another host in production, and {how} back to a connection without TLS. Add "
        "sslmode=verify-full with sslrootcert=system or the file of your authority, or sslmode=require; if the network "
        "itself is trusted say so with sslmode=disable."
    )


def direct_variable(target: Target) -> str:
    """Return the variable for a URL past a connection pooler, and where it goes so that it wins over the one in force.

    :param target: a target of administration.
    """
    package = target.package
    names = _process_names(package, administrative=True)
    if target.origin in {str(Value(name, "", PROCESS)) for name in names}:
        return f"{names[0]} in {PROCESS}"
    return f"{_forms(package.variable, administrative=True)[0]} in {package.folder / '.env'}"


def administrator(target: Target, environ: Mapping[str, str] | None = None) -> Target:
    """Return the target as its server's administrator reaches it, who may do more than the owner in its ``.env`` may.

    That is whom ``PG*`` name in the process environment or the root ``.env``, if the URL stands in the package's own
    ``.env`` and leads to the same server. A URL in the process environment is taken as it is.

    :param target: a target of administration.
    """
    environ = os.environ if environ is None else environ
    forms = _forms(target.package.variable, administrative=True)
    in_file = [name for name in forms if target.origin.startswith(f"{name} in {target.package.folder / '.env'}")]
    server, origin = _server(_Files(target.package.root).root, environ) if in_file else (None, "")
    if server is None or target.url is None:
        return target
    url = DatabaseURL({**server, "dbname": target.database})
    if url.place != target.url.place:
        return target
    _refuse_plain(url, target.environment == "production", origin, environ)
    return replace(target, url=url, origin=origin)


def server_home(root: Path, environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the folder named by ATRIZ_SERVER_HOME for the embedded server, `None` where it isn't set.

    :param root: the workspace's folder, against which a relative path is read.
    """
    text = (os.environ if environ is None else environ).get("ATRIZ_SERVER_HOME", "")
    try:
        return (root / Path(text).expanduser()).absolute() if text else None
    except RuntimeError:
        raise SettingsError(
            f"ATRIZ_SERVER_HOME in {PROCESS} is {text}, and there is no such user. Name a folder."
        ) from None


def named_server(environ: Mapping[str, str] | None = None) -> DatabaseURL | None:
    """Return the server that PG* name in the process environment, its maintenance database; `None` if they don't."""
    environ = os.environ if environ is None else environ
    parameters, _ = _server({}, environ)
    return None if parameters is None else DatabaseURL({**parameters, "dbname": "postgres"})


def process_values(names: Sequence[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return those of the variables that the process environment has, and that are not blank."""
    environ = os.environ if environ is None else environ
    return {name: environ[name] for name in names if environ.get(name)}


def read_file(path: Path) -> dict[str, Value]:
    """Return the variables of one ``.env`` file, nothing interpolated; empty if the file is missing.

    Raise `SettingsError` if the file cannot be read or a line of it cannot be parsed.
    """
    from io import StringIO

    from dotenv.parser import parse_stream

    if path.exists() and not path.is_file() and not path.is_dir():
        raise SettingsError(f"{path} cannot be read: it is not a file. Remove it.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8 text. It should hold lines of the form NAME=value.") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}. Mend its permissions or remove it.") from None
    if "\0" in text:
        raise SettingsError(f"{path} is a binary file. It should hold lines of the form NAME=value.")
    values = {}
    for binding in parse_stream(StringIO(text)):
        # A binding begins with the blank lines before it.
        blank = binding.original.string[: -len(binding.original.string.lstrip()) or None]
        line = binding.original.line + blank.count("\n")
        if binding.error or (binding.key is not None and binding.value is None):
            # The line itself may be a password: only its number is shown.
            raise SettingsError(
                f"{path}, line {line} cannot be parsed. It should be NAME=value; a value with "
                "spaces, # or quotes goes in single quotes."
            )
        if binding.key is not None and binding.value is not None:
            values[binding.key] = Value(binding.key, binding.value, f"{path}, line {line}")
    return values


class _Files:
    """The ``.env`` files of a workspace, each read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[Path, dict[str, Value]] = {}

    def of(self, folder: Path) -> dict[str, Value]:
        if folder not in self._read:
            self._read[folder] = read_file(folder / ".env")
        return self._read[folder]

    @property
    def root(self) -> dict[str, Value]:
        return self.of(self._root)


def _target(package: Package, files: _Files, environ: Mapping[str, str], administrative: bool) -> Target:
    environment, environment_origin = _environment(package, files, environ)
    for value in _urls(package, files, environ, administrative):
        try:
            url = DatabaseURL.parse(value.text)
        except SettingsError as error:
            raise SettingsError(f"{value} {error}.") from None
        _refuse_plain(url, environment == "production", str(value), environ)
        return Target(package, url, str(value), environment, environment_origin)
    server, origin = _server(files.root, environ)
    if server is None:
        if environment == "production":
            raise SettingsError(
                f"No database is named for {package.name}, and APP_ENV is production, where the embedded server is "
                f"not used. Looked for {', '.join(_process_names(package, administrative))} in {PROCESS}, "
                f"{package.variable} in {package.folder / '.env'}, and PGHOST in {PROCESS} and "
                f"{package.root / '.env'}. Set one of them."
            )
        return Target(package, None, EMBEDDED, environment, environment_origin)
    url = DatabaseURL({**server, "dbname": package.database})
    _refuse_plain(url, environment == "production", origin, environ)
    return Target(package, url, origin, environment, environment_origin)


def _urls(package: Package, files: _Files, environ: Mapping[str, str], administrative: bool) -> Iterator[Value]:
    """Yield what levels 1 and 2 hold, the winner first."""
    for name in _process_names(package, administrative):
        if name in environ:
            yield Value(name, environ[name], PROCESS)
    own = files.of(package.folder)
    for name in _forms(package.variable, administrative):
        if name in own:
            yield own[name]


def _process_names(package: Package, administrative: bool) -> tuple[str, ...]:
    forms = _forms(package.variable, administrative)
    return (*(f"{package.prefix}_{form}" for form in forms), *forms)


def _forms(variable: str, administrative: bool) -> tuple[str, ...]:
    return (f"DIRECT_{variable}", variable) if administrative else (variable,)


def _server(file: Mapping[str, Value], environ: Mapping[str, str]) -> tuple[dict[str, str] | None, str]:
    """Return libpq's parameters of the server that PG* name, and where it is named."""
    process = {name: Value(name, text, PROCESS) for name, text in environ.items() if name.startswith("PG") and text}
    for values in (process, {**file, **process}):
        naming = [values[name] for name in _NAMES_A_SERVER if name in values and values[name].text]
        # What the process environment says of another server's port or password is not mixed into this one:
        # where it names the server, the root .env isn't asked.
        if naming:
            _refuse_bad_server(values)
            keywords = _libpq_keywords()
            parameters = {keywords[name]: value.text for name, value in values.items() if name in keywords}
            return parameters, str(naming[0])
    return None, ""


def _refuse_bad_server(values: Mapping[str, Value]) -> None:
    """Refuse what libpq would stumble over later, in words that may repeat a password."""
    host, port = values.get("PGHOST"), values.get("PGPORT")
    if host is not None and ("://" in host.text or "@" in host.text.lstrip("@")):
        raise SettingsError(
            f"{host} is a URL; it should be a host's name. A URL goes into a package's variable; see `atriz env`."
        )
    if port is not None and not all(is_port(part) for part in port.text.split(",")):
        raise SettingsError(f"{port} is not a number from 1 to 65535.")


def _libpq_keywords() -> dict[str, str]:
    """Return the keyword of each PG* variable that this libpq knows, but for the database's name."""
    from psycopg.pq import Conninfo

    options = Conninfo.get_defaults()
    return {
        option.envvar.decode(): option.keyword.decode()
        for option in options
        if option.envvar and option.envvar != b"PGDATABASE"
    }


def _environment(package: Package, files: _Files, environ: Mapping[str, str]) -> tuple[str, str | None]:
    value: Value | None = None
    if "APP_ENV" in environ:
        value = Value("APP_ENV", environ["APP_ENV"], PROCESS)
    value = value or files.of(package.folder).get("APP_ENV") or files.root.get("APP_ENV")
    if value is None:
        return "development", None
    if value.text not in ENVIRONMENTS:
        raise _not_an_environment(value)
    return value.text, value.origin


def _not_an_environment(value: Value) -> SettingsError:
    return SettingsError(f"{value} is {value.text!r}. It must be {', '.join(ENVIRONMENTS[:-1])} or production.")


def _refuse_ambiguous_variables(packages: Sequence[Package], environ: Mapping[str, str], administrative: bool) -> None:
    for variable in dict.fromkeys(package.variable for package in packages):
        sharing = [package for package in packages if package.variable == variable]
        present = [name for name in _forms(variable, administrative) if name in environ]
        if len(sharing) < 2 or not present:
            continue
        own = {package.name: f"{package.prefix}_{variable}" for package in sharing}
        unnamed = [
            package
            for package in sharing
            if not any(f"{package.prefix}_{form}" in environ for form in _forms(variable, administrative))
        ]
        if unnamed:
            raise SettingsError(
                f"{present[0]} in {PROCESS} could mean the database of {_and(own)}, and this run covers them all. "
                f"Set {_and(own.values())} instead, or name one package."
            )


def _refuse_one_database_twice(targets: Sequence[Target]) -> None:
    seen: dict[tuple[str, ...], Target] = {}
    for target in targets:
        place = target.url.place if target.url else (EMBEDDED, target.database)
        other = seen.setdefault(place, target)
        if other is not target:
            raise SettingsError(
                f"{other.package.name} and {target.package.name} lead to one database, "
                f"{target.url or target.database}: {other.package.name} by {other.origin}, {target.package.name} by "
                f"{target.origin}. Each package needs a database of its own; change one of them."
            )


def _refuse_two_environments(targets: Sequence[Target]) -> None:
    if len({target.environment for target in targets}) > 1:
        where = "; ".join(
            f"{target.package.name}: {target.environment} ({target.environment_origin or 'nowhere set, the default'})"
            for target in targets
        )
        raise SettingsError(
            f"APP_ENV differs between the packages of this run. {where}. Set one value for all of them."
        )


def _refuse_other_shared_database(
    workspace: Workspace, packages: Sequence[Package], files: _Files, environ: Mapping[str, str]
) -> None:
    """Refuse an app whose .env leads it to another shared database than the one its owner manages."""
    by_name = {package.name: package for package in workspace.packages}
    for package in packages:
        for owner in (by_name[name] for name in package.requires if name in by_name):
            held = files.of(package.folder).get(owner.variable)
            if held is None or owner.variable in environ or owner.variable == package.variable:
                continue
            try:
                theirs = DatabaseURL.parse(held.text)
            except SettingsError as error:
                raise SettingsError(f"{held} {error}.") from None
            try:
                target = _target(owner, files, environ, administrative=False)
            except SettingsError:
                # An app deployed alone in production knows core's URL by its own .env only: nothing to compare with.
                if owner in packages:
                    raise
                continue
            if target.url is None or target.url.place != theirs.place:
                raise SettingsError(
                    f"{held} leads to {theirs}, but {owner.name} itself leads to {target.url or EMBEDDED} "
                    f"({target.origin}). {package.name} would sign people in from a database that no verb here looks "
                    f"after. Make the two equal, or remove the one in {package.folder / '.env'}."
                )


def _and(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
