"""Roles of people: administration, on the tables. An app asks `Identity.has_role`, and cannot change them."""

from __future__ import annotations

import psycopg

from atriz_core.errors import UserError
from atriz_database.databases import Connection


def grant(connection: Connection, email: str, role: str) -> bool:
    """Give a user a role, from their next request on. Return whether they lacked it.

    Raise `UserError` if there is no such user or role.
    """
    user, id_ = _user(connection, email), _role(connection, role)
    try:
        done = connection.execute(
            "INSERT INTO user_roles (user_id, role_id) VALUES (%s, %s) ON CONFLICT DO NOTHING", [user, id_]
        )
    except psycopg.errors.ForeignKeyViolation:
        raise UserError(f"{email} or the role {role} has been deleted meanwhile.") from None
    return done.rowcount > 0


def revoke(connection: Connection, email: str, role: str) -> bool:
    """Take a role from a user, from their next request on. Return whether they had it.

    Raise `UserError` if there is no such user or role.
    """
    user, id_ = _user(connection, email), _role(connection, role)
    done = connection.execute("DELETE FROM user_roles WHERE user_id = %s AND role_id = %s", [user, id_])
    return done.rowcount > 0


def has_role(connection: Connection, email: str, role: str) -> bool:
    """Return whether a user has a role; nobody has one that there is not."""
    row = connection.execute(
        "SELECT FROM users JOIN user_roles ON user_id = users.id JOIN roles ON roles.id = role_id"
        " WHERE email = %s AND roles.name = %s",
        [email, role],
    ).fetchone()
    return row is not None


def _user(connection: Connection, email: str) -> object:
    row = connection.execute("SELECT id FROM users WHERE email = %s", [email]).fetchone()
    if row is None:
        raise UserError(f"There is no user {email}. `atriz users list` shows those there are.")
    return row[0]


def _role(connection: Connection, role: str) -> object:
    rows = connection.execute("SELECT name, id FROM roles ORDER BY name").fetchall()
    for name, id_ in rows:
        if name == role:
            return id_
    raise UserError(f"There is no role {role}. There are: {', '.join(name for name, _ in rows)}.")
