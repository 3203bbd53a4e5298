"""Registering, showing that an address is one's own, and getting back in by mail; and the attacks on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from io import StringIO
from typing import Any
from uuid import UUID

import pytest

from atriz_core import addresses
from atriz_core.accounts import Accounts, Policy
from atriz_core.errors import InputError, SignInError, ThrottledError, TokenError
from atriz_core.mail import ConsoleMail, Message
from atriz_core.passwords import Cost
from atriz_core.tokens import Keys
from atriz_database import Database

AddUser = Callable[..., UUID]
AtOnce = Callable[[int, Callable[[int], Any]], list[Any]]
EMAIL = "ada@example.com"
NEW = "another horse battery staple"


def test_registered_user_signs_in_after_verifying(accounts: Accounts, password: str, outbox: Any) -> None:
    """An account is made, a mail goes out, and only what is in it opens the account; it is good for once."""
    accounts.register(" Ada@Example.com", password, "  Ada Okafor ")
    message = outbox.last("verify")
    assert (message.email, message.name) == (EMAIL, "Ada Okafor")
    with pytest.raises(SignInError):
        accounts.sign_in(EMAIL, password)
    accounts.verify_email(message.token)
    identity = accounts.check(accounts.sign_in(EMAIL, password).access)
    assert (identity.name, identity.roles) == ("Ada Okafor", ())
    with pytest.raises(TokenError):
        accounts.verify_email(message.token)


def test_taken_address_is_told_to_its_owner_alone(
    accounts: Accounts, add_user: AddUser, password: str, outbox: Any
) -> None:
    """Whoever registers an address that has an account hears what others hear; name and password stay."""
    add_user()
    before = accounts.database.query("SELECT name, password_hash, email_verified FROM users")
    assert accounts.register(EMAIL, NEW, "Mallory") is None
    message = outbox.last("taken")
    assert (message.email, message.name) == (EMAIL, "Ada")
    assert accounts.database.query("SELECT name, password_hash, email_verified FROM users") == before
    assert accounts.sign_in(EMAIL, password)


def test_registering_somebody_elses_address_gives_nothing(accounts: Accounts, outbox: Any) -> None:
    """Mallory registers Ada's address before her. She registers, reads her mail, and Mallory's password is none.

    Mallory's first mail is no good once she has asked herself, so that no link that she may follow opens his password.
    """
    accounts.register(EMAIL, "the password of Mallory", "Mallory")
    mallorys = outbox.last("verify").token
    accounts.register(EMAIL, "what Ada would like to have", "Ada")
    adas = outbox.last("taken").token
    with pytest.raises(TokenError):
        accounts.verify_email(mallorys)
    accounts.reset_password(adas, NEW)
    assert accounts.sign_in(EMAIL, NEW)
    for wrong in ("the password of Mallory", "what Ada would like to have"):
        with pytest.raises(SignInError):
            accounts.sign_in(EMAIL, wrong)


@pytest.mark.gate
def test_taken_address_takes_no_other_time(database: Database, keys: Keys, outbox: Any, add_user: AddUser) -> None:
    """What costs is the hash, which is made in either case: medians lie within a third of one another.

    Times are the thread's own, which nothing else at work on the machine adds to.
    """
    accounts = Accounts(database, keys, outbox, Policy(cost=Cost(rounds=3, memory_kib=40_960, lanes=1)))
    add_user()
    took: dict[str, list[float]] = {"new": [], "taken": []}
    for number in range(8):
        for name, email in (("new", f"new{number}@example.com"), ("taken", EMAIL)):
            began = time.thread_time()
            accounts.register(email, NEW, "Ada", f"203.0.113.{number}")
            took[name].append(time.thread_time() - began)
    new, taken = (statistics.median(seconds[1:]) for seconds in took.values())
    assert 3 / 4 < new / taken < 4 / 3, took


def test_concurrent_registration_makes_one_account(accounts: Accounts, at_once: AtOnce, outbox: Any) -> None:
    """Eight that register one address at the same moment make one user; one mail verifies, the others do not."""
    results = at_once(8, lambda n: accounts.register(EMAIL, f"password of somebody {n}", f"N {n}", f"203.0.113.{n}"))
    assert results == [None] * 8
    assert accounts.database.query("SELECT count(*) FROM users") == [(1,)]
    kinds = [message.kind for message in outbox.messages]
    assert sorted(kinds) == ["taken"] * 7 + ["verify"]


@pytest.mark.parametrize(
    "email",
    [
        "\u0430da@example.com",  # CYRILLIC SMALL LETTER A
        "ada@ex\u0430mple.com",
        "\uff41da@example.com",  # FULLWIDTH LATIN SMALL LETTER A
        "ada@example\uff0ecom",  # FULLWIDTH FULL STOP
        "ada\u200b@example.com",  # ZERO WIDTH SPACE
        "a\u0307da@example.com",  # COMBINING DOT ABOVE
        "\u202eada@example.com",  # RIGHT-TO-LEFT OVERRIDE
    ],
)
def test_address_that_looks_like_anothers_is_refused(
    accounts: Accounts, add_user: AddUser, password: str, email: str, outbox: Any
) -> None:
    """A letter that only looks like one of ASCII, or that none sees, is named and refused, and folded to nobody's."""
    add_user()
    for ask in (lambda: accounts.register(email, password, "Ada"), lambda: accounts.request_password_reset(email)):
        with pytest.raises(InputError, match="ASCII") as caught:
            ask()
        assert caught.value.field == "email"
    with pytest.raises(SignInError):
        accounts.sign_in(email, password)
    assert outbox.messages == []


def test_letter_that_is_lowered_to_ascii_is_not_lowered(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """The Kelvin sign is a K that lower() makes a k of: neither here nor in the database does it become kim's."""
    add_user("kim@example.com")
    with pytest.raises(InputError, match="KELVIN SIGN"):
        addresses.normalised("\u212aim@example.com")
    from sqlalchemy.exc import IntegrityError

    with pytest.raises(IntegrityError, match="ck_users_email"):
        accounts.database.query(
            "SELECT * FROM auth.register(:email, 'h', 'Kim', 'v', 1, 'r', 1)", email="\u212aim@example.com"
        )
    with pytest.raises(IntegrityError, match="ck_users_email"):
        add_user("\u212aim@example.com")


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\nb", "a\0b", "\u202eabc"])
def test_name_that_cannot_be_shown_is_refused(accounts: Accounts, password: str, name: str) -> None:
    """A name is some characters that can be seen: no line breaks that would make a mail of their own."""
    with pytest.raises(InputError) as caught:
        accounts.register(EMAIL, password, name)
    assert caught.value.field == "name"


@pytest.mark.parametrize("given", ["short", "ada@example.com!", "Ada Okafor Okafor", "x" * 1_000_000])
def test_password_is_refused_before_anything_is_made(accounts: Accounts, given: str, outbox: Any) -> None:
    """A password that cannot be taken leaves no user and sends no mail."""
    with pytest.raises(InputError):
        accounts.register(EMAIL, given, "Ada Okafor")
    assert accounts.database.query("SELECT count(*) FROM users") == [(0,)]
    assert outbox.messages == []


def test_reset_sets_a_password_once_and_signs_out_everywhere(
    accounts: Accounts, add_user: AddUser, password: str, outbox: Any
) -> None:
    """What came by mail sets one password; tokens of before, and other mails of the kind, are no good after it."""
    add_user(verified=False)
    accounts.database.execute("UPDATE users SET email_verified = true")
    signed_in = accounts.sign_in(EMAIL, password)
    accounts.database.execute("UPDATE users SET email_verified = false")
    accounts.request_password_reset(EMAIL)
    other = outbox.last("reset").token
    accounts.request_password_reset(" ADA@example.com")
    token = outbox.last("reset").token
    with pytest.raises(InputError):
        accounts.reset_password(token, "short")
    accounts.reset_password(token, NEW)
    assert outbox.last("changed").email == EMAIL
    assert outbox.last("changed").token == ""
    with pytest.raises(SignInError):
        accounts.sign_in(EMAIL, password)
    assert accounts.sign_in(EMAIL, NEW)  # the mail has shown that the address is theirs
    for spent in (token, other):
        with pytest.raises(TokenError):
            accounts.reset_password(spent, "a third horse battery staple")
    with pytest.raises(TokenError):
        accounts.check(signed_in.access)
    with pytest.raises(TokenError):
        accounts.refresh(signed_in.refresh)


def test_reset_of_nobody_says_nothing(accounts: Accounts, add_user: AddUser, outbox: Any) -> None:
    """Nobody, and somebody who is no longer active, get no mail; and who asks hears the same."""
    add_user("gone@example.com", active=False)
    assert accounts.request_password_reset("nobody@example.com") is None
    assert accounts.request_password_reset("gone@example.com") is None
    assert outbox.messages == []
    assert accounts.database.query("SELECT count(*) FROM auth_tokens") == [(0,)]


def test_concurrent_reset_sets_one_password(
    accounts: Accounts, add_user: AddUser, at_once: AtOnce, outbox: Any
) -> None:
    """Of eight that spend one token at the same moment one sets its password."""
    add_user()
    accounts.request_password_reset(EMAIL)
    token = outbox.last("reset").token
    results = at_once(8, lambda number: accounts.reset_password(token, f"password of somebody {number}"))
    (winner,) = [number for number, result in enumerate(results) if result is None]
    assert sum(isinstance(result, TokenError) for result in results) == 7
    assert accounts.sign_in(EMAIL, f"password of somebody {winner}")


@pytest.mark.parametrize("state", ["expires_at = now()", "revoked_at = now()", "last_used_at = now()"])
def test_spent_mails_are_refused(accounts: Accounts, add_user: AddUser, outbox: Any, state: str) -> None:
    """A mail that is too old, taken back or spent neither verifies nor resets."""
    add_user()
    accounts.request_password_reset(EMAIL)
    reset = outbox.last("reset").token
    accounts.register("new@example.com", NEW, "New")
    verify = outbox.last("verify").token
    accounts.database.execute(f"UPDATE auth_tokens SET {state}")
    with pytest.raises(TokenError):
        accounts.reset_password(reset, NEW)
    with pytest.raises(TokenError):
        accounts.verify_email(verify)


def test_mail_opens_no_account_that_was_closed(accounts: Accounts, outbox: Any) -> None:
    """A mail of before a deactivation neither verifies nor sets a password."""
    accounts.register(EMAIL, NEW, "Ada")
    verify = outbox.last("verify").token
    accounts.request_password_reset(EMAIL)
    reset = outbox.last("reset").token
    accounts.database.execute("UPDATE users SET is_active = false")
    with pytest.raises(TokenError):
        accounts.verify_email(verify)
    with pytest.raises(TokenError):
        accounts.reset_password(reset, NEW)


def test_change_takes_the_old_password_and_signs_out_everywhere(
    accounts: Accounts, add_user: AddUser, password: str, outbox: Any
) -> None:
    """The old password, tried as in a sign-in, sets a new one; every sign-in of before ends."""
    add_user()
    signed_in = accounts.sign_in(EMAIL, password)
    with pytest.raises(SignInError):
        accounts.change_password(EMAIL, "not the password", NEW)
    with pytest.raises(InputError):
        accounts.change_password(EMAIL, password, "short")
    accounts.change_password(EMAIL, password, NEW)
    assert outbox.last("changed").email == EMAIL
    with pytest.raises(TokenError):
        accounts.check(signed_in.access)
    with pytest.raises(SignInError):
        accounts.sign_in(EMAIL, password)
    assert accounts.sign_in(EMAIL, NEW)


def test_mails_to_one_address_are_limited(accounts: Accounts, add_user: AddUser, outbox: Any) -> None:
    """Nobody is flooded by whoever asks again and again, with an account or without; elsewhere one goes on."""
    add_user()
    for email in (EMAIL, "nobody@example.com"):
        for _ in range(3):
            accounts.request_password_reset(email, "203.0.113.9")
        with pytest.raises(ThrottledError):
            accounts.request_password_reset(email, "203.0.113.9")
        with pytest.raises(ThrottledError):
            accounts.register(email, NEW, "Mallory", "203.0.113.9")
    assert len(outbox.messages) == 3
    accounts.request_password_reset(EMAIL, "203.0.113.10")


def test_console_mail_shows_what_is_needed_and_repr_does_not() -> None:
    """In development the token is on the console; in a log of the message it is not."""
    stream = StringIO()
    message = Message("reset", EMAIL, "Ada", "the-token")
    ConsoleMail(stream).send(message)
    assert "the-token" in stream.getvalue()
    assert EMAIL in stream.getvalue()
    assert "the-token" not in repr(message)
