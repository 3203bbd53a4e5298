"""Seed the people of `atriz_core.development`, three roles, and who has which."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from atriz_core.development import USERS, user_id

# The password of every development user is "development". One literal and not a hash made here: argon2 is slow on
# purpose, and a new salt at each run would make every seeded database different. Made with argon2-cffi 25.1.0, its
# defaults (RFC 9106, low memory): argon2.PasswordHasher().hash("development").
PASSWORD_HASH = "$argon2id$v=19$m=65536,t=3,p=4$8YHm8dI9Fed96d9bNuXydA$gCcwX0b284psj8eptVeS+iBqmSZsi4RowWGJ1pgsEv0"  # noqa: S105 - known to all, on purpose

ROLES = (
    ("admin", "May do everything, for everybody."),
    ("manager", "Answers for vehicles, products and stock."),
    ("member", "May sign in and use the apps."),
)

# (address, key, value)
METADATA = (
    ("ada@example.com", "onboarding", {"finished": True, "steps": 5}),
    ("bruno@example.com", "onboarding", {"finished": True, "steps": 5}),
    ("hana@example.com", "onboarding", {"finished": False, "steps": 2}),
    ("eun-ji@example.com", "phone", "+82 2 555 0142"),
)


def seed(connection: psycopg.Connection[Any]) -> None:
    """Insert roles, people and what they have; what is already there stays as it is."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO roles (name, description) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            ROLES,
        )
        cursor.executemany(
            "INSERT INTO users (id, email, password_hash, name, email_verified) VALUES (%s, %s, %s, %s, true)"
            " ON CONFLICT DO NOTHING",
            [(user_id(user.email), user.email, PASSWORD_HASH, user.name) for user in USERS],
        )
        # By address and by name of the role: where a developer has made one of them by hand, it has another id.
        cursor.executemany(
            "INSERT INTO user_roles (user_id, role_id)"
            " SELECT users.id, roles.id FROM users, roles WHERE users.email = %s AND roles.name = %s"
            " ON CONFLICT DO NOTHING",
            [(user.email, role) for user in USERS for role in user.roles],
        )
        cursor.executemany(
            "INSERT INTO user_metadata (user_id, key, value) SELECT id, %s, %s FROM users WHERE email = %s"
            " ON CONFLICT DO NOTHING",
            [(key, Jsonb(value), email) for email, key, value in METADATA],
        )
