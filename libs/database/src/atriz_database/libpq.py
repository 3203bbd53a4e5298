"""What libpq is told beside a URL: the same for administration and for applications."""

from __future__ import annotations

from atriz_database.url import DEFAULT_PORT, SECRETS, DatabaseURL

_CONNECT_SECONDS = 10
_APPLICATION_NAME_BYTES = 63  # libpq cuts longer ones off with a notice.
# What the embedded server is reached with, whatever PG* in the process environment ask of other servers.
PLAIN = {
    "channel_binding": "prefer",
    "gssencmode": "disable",
    "options": "",
    "require_auth": "",
    "requirepeer": "",
    "sslmode": "disable",
    "sslnegotiation": "postgres",
    "target_session_attrs": "any",
}
# A connection may say nothing for as long as a revision takes: a firewall must not forget it meanwhile, and a server
# whose machine is gone is noticed within a minute. Of the least that libpq takes; a Unix socket has no use for them.
_KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",  # in milliseconds
}


class _Secret(str):
    """A text that is not shown where values are, as in a report of pytest's or of an error tracker."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def parameters(url: DatabaseURL, application_name: str) -> dict[str, str]:
    """Return what `psycopg.connect` needs to reach the database of `url` and no other server.

    The values that are secret are not shown by `repr`. psycopg makes one text of all of them, which its frames in the
    traceback of an error hold: who calls it raises the error without them.

    :param application_name: what the server shows beside the connection, unless the URL says another.
    """
    given = {key: _Secret(value) if key in SECRETS else value for key, value in url.parameters.items()}
    if "service" not in given:
        # What PG* in the process environment say of another server must not fill the gaps of this one.
        given = {"host": "", "hostaddr": "", "port": DEFAULT_PORT, **given}
    return {
        "application_name": application_name.encode()[:_APPLICATION_NAME_BYTES].decode(errors="ignore"),
        # In a database whose encoding is SQL_ASCII psycopg would give bytes for text.
        "client_encoding": "utf8",
        "connect_timeout": str(_CONNECT_SECONDS),
        **known(_KEEPALIVES),
        **given,
    }


def known(given: dict[str, str]) -> dict[str, str]:
    """Return what this libpq knows of: an old one refuses newer keywords."""
    from psycopg.pq import Conninfo

    keywords = {option.keyword.decode() for option in Conninfo.get_defaults()}
    return {keyword: value for keyword, value in given.items() if keyword in keywords}
