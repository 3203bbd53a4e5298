"""Rows that are good for nothing any more: tokens that have expired, attempts that no longer count."""

from __future__ import annotations

from dataclasses import dataclass

from atriz_database.databases import Connection

_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows were removed."""

    tokens: int
    attempts: int


def prune(connection: Connection) -> Pruned:
    """Remove expired tokens and old attempts, some at a time: nobody waits for it, and it may be cut off anywhere.

    A token that was used or revoked stays until it would have expired: shown again, it tells of a theft.

    :param connection: in autocommit, so that each part is committed by itself.
    """
    expired = (
        "DELETE FROM auth_tokens WHERE id = ANY (ARRAY("
        "SELECT id FROM auth_tokens WHERE expires_at <= now() ORDER BY expires_at LIMIT %s FOR UPDATE SKIP LOCKED))"
    )
    # The longest that one counts for, `leak` times `burst` in auth.limits, is 100 hours.
    counted = (
        "DELETE FROM attempts WHERE subject = ANY (ARRAY("
        "SELECT subject FROM attempts WHERE counted_at <= now() - interval '7 days'"
        " AND (trusted_until IS NULL OR trusted_until <= now()) LIMIT %s FOR UPDATE SKIP LOCKED))"
    )
    return Pruned(_all(connection, expired), _all(connection, counted))


def _all(connection: Connection, statement: str) -> int:
    total = 0
    while count := connection.execute(statement.encode(), [_AT_ONCE]).rowcount:
        total += count
        if count < _AT_ONCE:
            break
    return total
