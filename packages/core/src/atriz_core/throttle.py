"""Attempts, counted in the database: by account, by address, and by both. The limits stand in ``auth.limits``."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from atriz_core.errors import ThrottledError
from atriz_database import Database

_IPV6_PREFIX = 64


def source(address: str | None) -> str:
    """Return what of a client's address is counted: an IPv6 client has a whole network to choose from.

    >>> source("203.0.113.9"), source("2001:db8::1:2"), source("::ffff:203.0.113.9"), source(None)
    ('203.0.113.9', '2001:db8::/64', '203.0.113.9', '')
    """
    try:
        parsed: IPv4Address | IPv6Address = ip_address((address or "").partition("%")[0])
    except ValueError:
        # A Unix socket, or nothing at all: then the account alone is counted.
        return ""
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ip_network((parsed, _IPV6_PREFIX), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)


def count_mail(database: Database, email: str, address: str | None) -> None:
    """Count a mail that somebody asks for.

    Raise `ThrottledError` if there were too many.
    """
    ((seconds,),) = database.query("SELECT auth.attempt('mail', :email, :source)", email=email, source=source(address))
    if seconds > 0:
        raise ThrottledError(seconds)
