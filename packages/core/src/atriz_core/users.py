"""Users: administration, on the tables, by whoever owns them. What apps do is in `atriz_core.accounts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from atriz_core import roles
from atriz_core.errors import UserError
from atriz_database.databases import Connection


@dataclass(frozen=True, slots=True)
class User:
    """A user, as administration sees them."""

    id: UUID
    email: str
    name: str
    is_active: bool
    email_verified: bool
    roles: list[str]
    created_at: datetime
    last_login_at: datetime | None


def refuse_new(connection: Connection, email: str, given: Sequence[str] = ()) -> None:
    """Look whether a user can be made, before there is a password.

    Raise `UserError` if the address is taken, or there is no such role.
    """
    if connection.execute("SELECT FROM users WHERE email = %s", [email]).fetchone() is not None:
        raise _taken(email)
    _refuse_roles(connection, given)


def create(connection: Connection, email: str, name: str, password_hash: str, given: Sequence[str] = ()) -> UUID:
    """Make a user who can sign in at once: whoever makes them answers for the address.

    :param email: the address, from `atriz_core.addresses.normalised`.
    :param password_hash: from `atriz_core.passwords.Hasher`.
    :param given: names of roles.

    Raise `UserError` if the address is taken, or there is no such role.
    """
    with connection.transaction():
        try:
            row = connection.execute(
                "INSERT INTO users (email, name, password_hash, email_verified) VALUES (%s, %s, %s, true) RETURNING id",
                [email, name, password_hash],
            ).fetchone()
        except psycopg.errors.UniqueViolation:
            raise _taken(email) from None
        assert row is not None
        for role in given:
            roles.grant(connection, email, role)
    id_: UUID = row[0]
    return id_


_SELECT = (
    "SELECT id, email, name, is_active, email_verified, ARRAY(SELECT roles.name FROM user_roles JOIN roles"
    " ON roles.id = role_id WHERE user_id = users.id ORDER BY 1) AS roles, created_at, last_login_at FROM users"
)


def get(connection: Connection, email: str) -> User:
    """Return a user.

    Raise `UserError` if there is no such user.
    """
    with connection.cursor(row_factory=class_row(User)) as cursor:
        user = cursor.execute(_SELECT + " WHERE email = %s", [email]).fetchone()
    if user is None:
        raise _missing(email)
    return user


def find(connection: Connection, word: str = "", limit: int = 100, of: Sequence[str] = ()) -> list[User]:
    """Return users in order of their addresses, with what they may do.

    :param word: a part of the address or the name.
    :param limit: how many at most.
    :param of: names of roles, of which they have one; all users where there are none.

    Raise `UserError` if there is no such role.
    """
    _refuse_roles(connection, of)
    pattern = "%" + word.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%"
    with connection.cursor(row_factory=class_row(User)) as cursor:
        return cursor.execute(
            _SELECT + " WHERE (email ILIKE %(pattern)s OR name ILIKE %(pattern)s) AND (%(of)s::text[] = '{}' OR EXISTS"
            " (SELECT FROM user_roles JOIN roles ON roles.id = role_id WHERE user_id = users.id"
            " AND roles.name = ANY (%(of)s::text[]))) ORDER BY email LIMIT %(limit)s",
            {"pattern": pattern, "limit": limit, "of": list(of)},
        ).fetchall()


def set_password(connection: Connection, email: str, password_hash: str) -> None:
    """Set the password of a user, and sign them out everywhere; as in `create` whoever does so answers for the address.

    Raise `UserError` if there is no such user.
    """
    with connection.transaction():
        row = connection.execute(
            "UPDATE users SET password_hash = %s, email_verified = true WHERE email = %s RETURNING id",
            [password_hash, email],
        ).fetchone()
        _revoke_tokens(connection, email, row)


def deactivate(connection: Connection, email: str) -> bool:
    """Close an account: all its tokens are revoked, in every app at once, and nobody signs in to it.

    Return whether it was open. Raise `UserError` if there is no such user.
    """
    with connection.transaction():
        # The user's row first, as everywhere: who is signing in waits, and then finds it closed.
        row = connection.execute("SELECT id, is_active FROM users WHERE email = %s FOR UPDATE", [email]).fetchone()
        connection.execute("UPDATE users SET is_active = false WHERE email = %s AND is_active", [email])
        _revoke_tokens(connection, email, row)
    return row is not None and row[1] is True


def activate(connection: Connection, email: str) -> bool:
    """Open an account again; what was revoked stays so.

    Return whether it was closed. Raise `UserError` if there is no such user.
    """
    done = connection.execute("UPDATE users SET is_active = true WHERE email = %s AND NOT is_active", [email])
    if done.rowcount == 0:
        get(connection, email)
    return done.rowcount > 0


def _revoke_tokens(connection: Connection, email: str, row: Sequence[object] | None) -> None:
    if row is None:
        raise _missing(email)
    connection.execute("UPDATE auth_tokens SET revoked_at = now() WHERE user_id = %s AND revoked_at IS NULL", [row[0]])


def _missing(email: str) -> UserError:
    return UserError(f"There is no user {email}. `atriz users list` shows those there are.")


def _taken(email: str) -> UserError:
    return UserError(f"There is a user {email} already. `atriz users set-password {email}` lets them in.")


def _refuse_roles(connection: Connection, given: Sequence[str]) -> None:
    if given:
        names = [name for (name,) in connection.execute("SELECT name FROM roles ORDER BY name")]
        for role in given:
            if role not in names:
                raise UserError(f"There is no role {role}. There are: {', '.join(names)}.")
