"""Database URLs: parsed once, compared by where they lead, shown without their password."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import quote, urlencode

from atriz_database.errors import SettingsError

# SQLAlchemy's way to name a driver is accepted, because people paste such URLs; the driver is always psycopg 3.
_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
_POOLERS = ("transaction",)
SECRETS = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})
DEFAULT_PORT = "5432"
_PORT = re.compile("[0-9]{1,5}")


@dataclass(frozen=True, slots=True, repr=False)
class DatabaseURL:
    """Where a database is and how to sign in there, as libpq's connection parameters.

    Two URLs that lead to the same database by different users are different URLs with the same :attr:`place`.

    >>> url = DatabaseURL.parse("postgresql://ann:p%40ss@db.example.com/mextrack_db")
    >>> url.parameters["password"], str(url)
    ('p@ss', 'postgresql://ann:***@db.example.com/mextrack_db')
    """

    parameters: Mapping[str, str]
    """libpq keywords (``host``, ``dbname``, …) and their values, decoded."""
    pooler: str = ""
    """``transaction`` where a connection pooler in that mode stands before the server; libpq hears nothing of it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def __reduce__(self) -> tuple[type[DatabaseURL], tuple[dict[str, str], str]]:
        return DatabaseURL, (dict(self.parameters), self.pooler)  # A mapping proxy cannot be pickled.

    @classmethod
    def parse(cls, text: str) -> DatabaseURL:
        """Return the URL written in `text`, percent signs decoded.

        ``?pooler=transaction`` is an option of ours, and the rest libpq's.

        Raise `SettingsError` if it is blank, is not a URL of PostgreSQL, or names no database. No message repeats
        any part of `text`: a password with an unescaped ``@`` or ``/`` stands where a host or a port is expected.
        """
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        text = text.strip()
        if not text:
            raise SettingsError("is blank; give a URL such as postgresql://user:password@host:5432/name, or remove it")
        scheme, separator, rest = text.partition("://")
        if not separator:
            raise SettingsError("is not a URL; it should look like postgresql://user:password@host:5432/name")
        if scheme.lower() not in _SCHEMES:
            known = scheme if scheme.replace("+", "").isalnum() else "another scheme"
            raise SettingsError(
                f"is not a URL of PostgreSQL (it begins with {known}); it should begin with postgresql://"
            )
        unreadable = SettingsError(
            "cannot be parsed as a URL; in the user and the password write @ as %40, / as %2F, : as %3A, "
            "% as %25 and a space as %20"
        )
        authority, _, path = rest.partition("/")
        if authority.count("@") > 1 or "@" in path.partition("?")[0]:
            # libpq ends the password at the first @ and would take the rest of it for the host and the database.
            raise unreadable
        rest, pooler = _take_pooler(rest)
        try:
            parameters = {key: str(value) for key, value in conninfo_to_dict(f"postgresql://{rest}").items()}
        except (ProgrammingError, UnicodeError):
            # libpq's own text quotes the part it stumbled over, and that may be half a password.
            raise unreadable from None
        if not parameters.get("dbname"):
            raise SettingsError("names no database; end it with the database's name, as in …@host:5432/name")
        port = parameters.get("port", DEFAULT_PORT)
        if not all(is_port(part) for part in port.split(",") if part):
            raise SettingsError("has a port that is not a number from 1 to 65535")
        return cls(parameters, pooler)

    @property
    def database(self) -> str:
        """The database's name."""
        return self.parameters["dbname"]

    @property
    def place(self) -> tuple[str, str, str]:
        """Host, port and name: what tells one database from another, whoever signs in."""
        parameters = self.parameters
        host = parameters.get("hostaddr") or parameters.get("host") or parameters.get("service") or "localhost"
        if host in ("127.0.0.1", "::1"):
            host = "localhost"
        return host.lower(), parameters.get("port") or DEFAULT_PORT, parameters["dbname"]

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine: a socket, or a loopback address."""
        if self.parameters.get("service"):
            return False
        hosts = self.parameters.get("hostaddr") or self.parameters.get("host") or ""
        return all(_is_local_host(host) for host in hosts.split(","))

    def with_database(self, name: str) -> DatabaseURL:
        """Return the same server with another database."""
        return DatabaseURL({**self.parameters, "dbname": name}, self.pooler)

    def signing_in(self, user: str, password: str) -> DatabaseURL:
        """Return the same database for another user."""
        return DatabaseURL({**self.parameters, "user": user, "password": password}, self.pooler)

    def without_secrets(self) -> DatabaseURL:
        """Return the same place without a password: whoever has it elsewhere (PGPASSWORD, a file) can connect."""
        return DatabaseURL({key: value for key, value in self.parameters.items() if key not in SECRETS})

    def text(self, *, secrets: bool = False) -> str:
        """Return the URL as text; the password is ``***`` unless `secrets` is asked for."""
        rest = dict(self.parameters)
        user, password = rest.pop("user", ""), rest.pop("password", "")
        host, port, name = rest.pop("host", ""), rest.pop("port", ""), rest.pop("dbname")
        if not secrets:
            password = password and "***"
            rest = {key: "***" if key in SECRETS else value for key, value in rest.items()}
        if host.startswith(("/", "@")) or "," in host:
            # A socket's folder or a list of hosts fits the query part only.
            rest["host"], host = host, ""
            if port:
                rest["port"], port = port, ""
        authority = quote(user, safe="")
        if password:
            authority += ":" + (quote(password, safe="") if secrets else password)
        authority += "@" if authority else ""
        authority += f"[{host}]" if ":" in host else quote(host, safe="")
        authority += f":{port}" if port else ""
        if self.pooler:
            rest["pooler"] = self.pooler
        query = f"?{urlencode(rest, quote_via=quote, safe='/*')}" if rest else ""
        return f"postgresql://{authority}/{quote(name, safe='')}{query}"

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"DatabaseURL({self.text()!r})"


def _take_pooler(rest: str) -> tuple[str, str]:
    """Return the URL without our own option, which libpq does not know, and the option's value."""
    before, _, query = rest.partition("?")
    words = query.split("&") if query else []
    values = [word.partition("=")[2] for word in words if word.partition("=")[0] == "pooler"]
    if not values:
        return rest, ""
    if values[-1] not in _POOLERS:
        raise SettingsError(
            "has a pooler that is not known; pooler=transaction is for PgBouncer and its like in transaction mode, and "
            "a pooler in session mode needs no option"
        )
    others = "&".join(word for word in words if word.partition("=")[0] != "pooler")
    return f"{before}?{others}" if others else before, values[-1]


def is_port(text: str) -> bool:
    """Whether `text` is the number of a TCP port."""
    return _PORT.fullmatch(text) is not None and 0 < int(text) < 65536


def _is_local_host(host: str) -> bool:
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
