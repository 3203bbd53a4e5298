"""What the tables of core refuse and keep true."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors

from atriz_core.models import User

Connection = psycopg.Connection[Any]

LONG_AGO = datetime(2020, 2, 29, 12, tzinfo=UTC)


def add_user(connection: Connection, email: str = "new@example.com", name: str = "New") -> UUID:
    """Insert a user and return the id that the database gave it."""
    row = connection.execute(
        "INSERT INTO users (email, password_hash, name) VALUES (%s, 'hash', %s) RETURNING id", [email, name]
    ).fetchone()
    assert row is not None
    user: UUID = row[0]
    return user


def add_role(connection: Connection, name: str = "auditor") -> UUID:
    """Insert a role and return its id."""
    row = connection.execute("INSERT INTO roles (name) VALUES (%s) RETURNING id", [name]).fetchone()
    assert row is not None
    role: UUID = row[0]
    return role


def add_token(connection: Connection, user: UUID, token_hash: str = "hash", token_type: str = "refresh") -> None:
    """Insert a token of `user` that is good for an hour."""
    connection.execute(
        "INSERT INTO auth_tokens (user_id, token_type, token_hash, expires_at)"
        " VALUES (%s, %s, %s, now() + interval '1 hour')",
        [user, token_type, token_hash],
    )


@pytest.mark.parametrize(
    "email",
    [
        "a@b.co",
        "first.last+tag@mail.example.com",
        "o'neill@example.ie",
        "100%off@example.com",
        "eun-ji@sub-domain.example.museum",
        "x_y@1and1.example",
        "a" * 64 + "@example.com",
    ],
)
def test_email_of_good_form_is_taken(connection: Connection, email: str) -> None:
    """An address as browsers take it is stored as it is."""
    user = add_user(connection, email)
    assert connection.execute("SELECT email FROM users WHERE id = %s", [user]).fetchone() == (email,)


@pytest.mark.parametrize(
    "email",
    [
        "",
        "plain",
        "@example.com",
        "a@",
        "a@localhost",
        "a@@example.com",
        "a b@example.com",
        " a@example.com",
        "a@example.com ",
        "a@example.com\n",
        "a@example..com",
        "a@.example.com",
        "a@example.com.",
        "a@-example.com",
        "a@example-.com",
        "a@exam_ple.com",
        "Ada <ada@example.com>",
        "a@example.com,b@example.com",
        "á@example.com",
        "a@" + "b" * 64 + ".com",
        "a@" + ".".join(["b" * 60] * 5),
    ],
)
def test_email_of_bad_form_is_refused(connection: Connection, email: str) -> None:
    """What is not an address cannot be stored, whoever writes it."""
    with pytest.raises(errors.CheckViolation) as caught, connection.transaction():
        add_user(connection, email)
    assert caught.value.diag.constraint_name == "ck_users_email_form"


def test_email_is_stored_in_lower_case(connection: Connection) -> None:
    """An address is lowered when it is inserted and when it is changed."""
    user = add_user(connection, "Ada.L@Example.COM")
    assert connection.execute("SELECT email FROM users WHERE id = %s", [user]).fetchone() == ("ada.l@example.com",)
    changed = connection.execute(
        "UPDATE users SET email = 'ADA@EXAMPLE.COM' WHERE id = %s RETURNING email", [user]
    ).fetchone()
    assert changed == ("ada@example.com",)


def test_model_lowers_email_as_the_database_does() -> None:
    """A `User` made in Python has the address that its row will have."""
    assert User(email="Ada.L@Example.COM").email == "ada.l@example.com"


def test_email_is_unique_however_it_is_capitalised(connection: Connection) -> None:
    """Two users cannot share an address by writing it differently."""
    add_user(connection, "ada.l@example.com")
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        add_user(connection, "ADA.L@example.com")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
def test_no_stored_email_has_an_upper_case_letter_or_a_space(connection: Connection, text: str) -> None:
    """Whatever text comes as an address, it is refused or stored as lower-case ASCII without white space."""
    stored = ""
    with connection.transaction(force_rollback=True):
        try:
            with connection.transaction():
                user = add_user(connection, f"{text}@example.com")
        except errors.CheckViolation:
            return
        row = connection.execute("SELECT email FROM users WHERE id = %s", [user]).fetchone()
        assert row is not None
        stored = row[0]
    assert stored.isascii()
    assert stored == stored.lower()
    assert not any(character.isspace() for character in stored)
    assert stored.count("@") == 1


@pytest.mark.parametrize("name", ["", "   "])
def test_user_has_a_name(connection: Connection, name: str) -> None:
    """A user without a name is refused."""
    with pytest.raises(errors.CheckViolation), connection.transaction():
        add_user(connection, name=name)


def test_new_user_is_active_and_unverified(connection: Connection) -> None:
    """A new user may sign in, has not shown that the address is theirs, and never was here."""
    user = add_user(connection)
    row = connection.execute(
        "SELECT is_active, email_verified, last_login_at FROM users WHERE id = %s", [user]
    ).fetchone()
    assert row == (True, False, None)


def test_updated_at_of_user_follows_each_change(connection: Connection) -> None:
    """A change sets updated_at to now, also against a writer who says otherwise; created_at stays."""
    row = connection.execute(
        "INSERT INTO users (email, password_hash, name, created_at, updated_at)"
        " VALUES ('old@example.com', 'hash', 'Old', %(then)s, %(then)s) RETURNING id",
        {"then": LONG_AGO},
    ).fetchone()
    assert row is not None
    changed = connection.execute(
        "UPDATE users SET name = 'Older', updated_at = %(then)s WHERE id = %(user)s"
        " RETURNING created_at, updated_at = now()",
        {"user": row[0], "then": LONG_AGO + timedelta(days=1)},
    ).fetchone()
    assert changed == (LONG_AGO, True)


def test_unknown_token_type_is_refused(connection: Connection) -> None:
    """A token is good for one of the known things."""
    user = add_user(connection)
    with pytest.raises(errors.CheckViolation), connection.transaction():
        add_token(connection, user, token_type="master")


def test_token_hash_is_unique(connection: Connection) -> None:
    """One token cannot belong to two people."""
    add_token(connection, add_user(connection, "one@example.com"))
    other = add_user(connection, "two@example.com")
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        add_token(connection, other)


def test_token_belongs_to_somebody(connection: Connection) -> None:
    """A token of a user who does not exist is refused."""
    with pytest.raises(errors.ForeignKeyViolation), connection.transaction():
        add_token(connection, uuid4())


def test_role_is_given_once(connection: Connection) -> None:
    """A user has a role or not, never twice."""
    pair = [add_user(connection), add_role(connection)]
    connection.execute("INSERT INTO user_roles (user_id, role_id) VALUES (%s, %s)", pair)
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        connection.execute("INSERT INTO user_roles (user_id, role_id) VALUES (%s, %s)", pair)


def test_role_name_is_unique(connection: Connection) -> None:
    """Two roles cannot share a name."""
    add_role(connection)
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        add_role(connection)


def test_role_that_somebody_has_stays(connection: Connection) -> None:
    """A role is dropped only when nobody has it any more."""
    user, role = add_user(connection), add_role(connection)
    connection.execute("INSERT INTO user_roles (user_id, role_id) VALUES (%s, %s)", [user, role])
    with pytest.raises(errors.ForeignKeyViolation), connection.transaction():
        connection.execute("DELETE FROM roles WHERE id = %s", [role])
    connection.execute("DELETE FROM user_roles WHERE role_id = %s", [role])
    assert connection.execute("DELETE FROM roles WHERE id = %s", [role]).rowcount == 1


def test_fact_is_kept_once_for_each_key(connection: Connection) -> None:
    """A user has one value for a key; another user has their own."""
    insert = "INSERT INTO user_metadata (user_id, key, value) VALUES (%s, 'colour', '\"green\"')"
    user = add_user(connection)
    connection.execute(insert, [user])
    connection.execute(insert, [add_user(connection, "other@example.com")])
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        connection.execute(insert, [user])


def test_what_hangs_on_a_user_goes_with_them(connection: Connection) -> None:
    """Deleting a user deletes their tokens, roles and facts, and leaves the roles themselves."""
    user, role = add_user(connection), add_role(connection)
    add_token(connection, user)
    connection.execute("INSERT INTO user_roles (user_id, role_id) VALUES (%s, %s)", [user, role])
    connection.execute("INSERT INTO user_metadata (user_id, key, value) VALUES (%s, 'a', '1')", [user])
    connection.execute("DELETE FROM users WHERE id = %s", [user])
    left = connection.execute(
        "SELECT (SELECT count(*) FROM auth_tokens WHERE user_id = %(user)s),"
        " (SELECT count(*) FROM user_roles WHERE user_id = %(user)s),"
        " (SELECT count(*) FROM user_metadata WHERE user_id = %(user)s),"
        " (SELECT count(*) FROM roles WHERE id = %(role)s)",
        {"user": user, "role": role},
    ).fetchone()
    assert left == (0, 0, 0, 1)
