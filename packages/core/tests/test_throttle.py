"""Failed sign-ins make whoever guesses wait, in the database: in every process, and nobody else for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest

from atriz_core.accounts import Accounts, Tokens
from atriz_core.errors import SignInError, ThrottledError
from atriz_core.throttle import source
from atriz_database import Database

AddUser = Callable[..., UUID]
AtOnce = Callable[[int, Callable[[int], Any]], list[Any]]
EMAIL = "ada@example.com"
WRONG = "not the password"


def fail(accounts: Accounts, email: str = EMAIL, address: str | None = "203.0.113.9") -> float:
    """Try a wrong password, and return for how many seconds one has to wait; 0 where it was tried."""
    try:
        accounts.sign_in(email, WRONG, address)
    except ThrottledError as error:
        return error.seconds
    except SignInError:
        return 0
    raise AssertionError("nobody knows that password")


def pass_time(database: Database, seconds: float) -> None:
    """Let time pass for what has been counted."""
    database.execute(
        "UPDATE attempts SET counted_at = counted_at - make_interval(secs => :seconds),"
        " trusted_until = trusted_until - make_interval(secs => :seconds)",
        seconds=seconds,
    )


@pytest.mark.parametrize("email", [EMAIL, "nobody@example.com"])
def test_guesser_waits_longer_each_time(accounts: Accounts, add_user: AddUser, email: str) -> None:
    """Five are free, then the wait doubles to a quarter of an hour; for a known address and an unknown one alike."""
    add_user()
    began = time.perf_counter()
    assert [fail(accounts, email) for _ in range(5)] == [0] * 5
    waits = []
    for _ in range(14):
        wait = fail(accounts, email)
        if not waits:
            # Less by what has passed since the fifth.
            assert 1 - (time.perf_counter() - began) <= wait <= 1
        assert wait > 0
        assert fail(accounts, email) <= wait  # who hammers does not wait longer for it
        waits.append(wait)
        pass_time(accounts.database, wait)
        assert fail(accounts, email) == 0
    assert waits == sorted(waits)
    assert 6 < waits[3] <= 8
    assert 800 < waits[-1] <= 900  # where as much sinks in the meantime as an attempt adds


def test_guesser_waits_with_the_right_password_too(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """While one has to wait, no password is tried: the right one is not told from a wrong one."""
    add_user()
    while fail(accounts) == 0:
        pass
    with pytest.raises(ThrottledError):
        accounts.sign_in(EMAIL, password, "203.0.113.9")


def test_waiting_costs_no_hash(accounts: Accounts, add_user: AddUser) -> None:
    """Whoever has to wait does not make us hash: a flood is turned away cheaply."""
    add_user()
    while fail(accounts) == 0:
        pass
    accounts._hasher.matches = None  # type: ignore[assignment, method-assign]
    assert fail(accounts) > 0


def test_owner_elsewhere_does_not_wait(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """A guesser at one address keeps nobody out at another."""
    add_user()
    while fail(accounts) == 0:
        pass
    assert accounts.sign_in(EMAIL, password, "198.51.100.7")


def test_many_addresses_together_wait_and_the_owner_does_not(
    accounts: Accounts, add_user: AddUser, password: str
) -> None:
    """Against guesses from everywhere the account as a whole has a limit, but not where its owner has signed in.

    A new password, by mail, lets the owner in everywhere.
    """
    add_user()
    accounts.sign_in(EMAIL, password, "198.51.100.7")
    tried = 0
    while fail(accounts, address=f"10.0.{tried // 250}.{tried % 250}") == 0:
        tried += 1
        assert tried < 150
    assert tried == 100
    assert accounts.sign_in(EMAIL, password, "198.51.100.7")
    with pytest.raises(ThrottledError):
        accounts.sign_in(EMAIL, password, "192.0.2.1")
    accounts.request_password_reset(EMAIL)
    token = accounts._mail.messages[-1].token  # type: ignore[attr-defined]
    accounts.reset_password(token, "another horse battery staple")
    assert accounts.sign_in(EMAIL, "another horse battery staple", "192.0.2.1")


def test_trust_in_an_address_ends(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """A month after the last sign-in from there, the account's limit holds for an address again."""
    add_user()
    accounts.sign_in(EMAIL, password, "198.51.100.7")
    pass_time(accounts.database, 31 * 86400)
    for number in range(100):
        fail(accounts, address=f"10.0.0.{number}")
    with pytest.raises(ThrottledError):
        accounts.sign_in(EMAIL, password, "198.51.100.7")


def test_address_that_tries_many_accounts_waits(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """One password for all accounts: after fifty the address waits, and signing in to an own account helps nothing."""
    add_user("mallory@example.com")
    tried = 0
    while fail(accounts, email=f"user{tried}@example.com") == 0:
        tried += 1
        assert tried < 80
        if tried % 10 == 5:
            accounts.sign_in("mallory@example.com", password, "203.0.113.9")
    assert 50 <= tried <= 52


def test_network_of_one_client_is_one_address(accounts: Accounts) -> None:
    """An IPv6 client does not get around it by its next address; IPv4 in IPv6 is what it is, and no one network."""
    assert source("2001:db8:1:2:3:4:5:6") == source("2001:db8:1:2::1%eth0") == "2001:db8:1:2::/64"
    assert source("2001:db8:1:3::1") != source("2001:db8:1:2::1")
    assert source("::ffff:203.0.113.9") == "203.0.113.9"
    assert source("testclient") == source(None) == source("\0") == ""
    while fail(accounts, address="2001:db8:1:2::1") == 0:
        pass
    assert fail(accounts, address="2001:db8:1:2::2") > 0
    assert fail(accounts, address="2001:db8:1:3::2") == 0


def test_without_an_address_the_account_is_counted(accounts: Accounts) -> None:
    """Where no address is known, as behind a Unix socket, guessing at one account ends all the same."""
    assert [fail(accounts, address=None) for _ in range(5)] == [0] * 5
    assert fail(accounts, address=None) > 0
    assert fail(accounts, email="other@example.com", address=None) == 0


def test_guesses_at_once_are_no_more_than_allowed(accounts: Accounts, add_user: AddUser, at_once: AtOnce) -> None:
    """Forty at the same moment, in connections of their own: five are tried, not forty."""
    add_user()
    results = at_once(40, lambda _: fail(accounts))
    assert results.count(0) == 5


def test_owner_who_mistypes_begins_anew_after_success(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """Four mistakes and a success, again and again, never make the owner wait."""
    add_user()
    for _ in range(5):
        assert [fail(accounts) for _ in range(4)] == [0] * 4
        assert isinstance(accounts.sign_in(EMAIL, password, "203.0.113.9"), Tokens)


def test_it_is_forgotten_with_time(accounts: Accounts) -> None:
    """What was counted sinks: after some hours one may mistype as often as ever."""
    while fail(accounts) == 0:
        pass
    pass_time(accounts.database, 6 * 900)
    assert [fail(accounts) for _ in range(5)] == [0] * 5


def test_it_holds_in_every_process(accounts: Accounts, database: Database, add_user: AddUser) -> None:
    """Another process, with another pool, makes the guesser wait as this one does."""
    add_user()
    while fail(accounts) == 0:
        pass
    with Database(database.url, production=False) as other:
        elsewhere = Accounts(other, accounts._keys, accounts._mail, accounts.policy)
        assert fail(elsewhere) > 0


def test_nothing_that_was_typed_is_kept(accounts: Accounts, database: Database) -> None:
    """What is counted is a hash: an address, or a password that was typed in its place, is not in the table."""
    fail(accounts, email="my-password@example.com")
    ((text,),) = database.query("SELECT string_agg(a::text || encode(subject, 'escape'), ' ') FROM attempts a")
    assert "my-password" not in text
    assert "203.0.113.9" not in text
    ((kind,),) = database.query("SELECT relpersistence::text FROM pg_class WHERE relname = 'attempts'")
    assert kind == "u"  # and it is written to no log


def test_flood_is_turned_away_before_it_is_counted(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """When so many hash or wait to that others would wait too long, they are told to come back, and lose no attempt."""
    add_user()
    with ExitStack() as taken:
        with pytest.raises(ThrottledError) as caught:
            while True:
                taken.enter_context(accounts._hasher.admitted())
        assert caught.value.seconds == 1
        for _ in range(10):
            with pytest.raises(ThrottledError):
                accounts.sign_in(EMAIL, password, "203.0.113.9")
    assert accounts.database.query("SELECT count(*) FROM attempts") == [(0,)]
    made = accounts.sign_in(EMAIL, password, "203.0.113.9")
    with ExitStack() as taken:
        for _ in range(16):
            taken.enter_context(accounts._hasher.admitted())
        assert accounts.check(made.access).email == EMAIL  # which hashes nothing
