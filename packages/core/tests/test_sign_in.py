"""Signing in and staying so: what holds, and the attacks on it."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import bcrypt
import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from atriz_core import tokens, users
from atriz_core.accounts import Accounts, Policy, Tokens
from atriz_core.errors import AccountError, SignInError, TokenError
from atriz_core.passwords import Cost, Hasher
from atriz_core.tokens import Keys
from atriz_database import Database

AddUser = Callable[..., UUID]
AtOnce = Callable[[int, Callable[[int], Any]], list[Any]]
EMAIL = "ada@example.com"


def is_good(accounts: Accounts, access_token: str) -> bool:
    """Return whether an access token lets somebody in."""
    try:
        accounts.check(access_token)
    except TokenError:
        return False
    return True


def test_right_password_gives_tokens_that_say_who(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """The address in any spelling, and the password, give an access token by which one is known with one's roles."""
    user_id = add_user()
    accounts.database.execute(
        "INSERT INTO user_roles (user_id, role_id) SELECT :user, id FROM roles WHERE name IN ('member', 'admin')",
        user=user_id,
    )
    made = accounts.sign_in(" ADA@Example.com", password, "203.0.113.9")
    identity = accounts.check(made.access)
    assert (identity.user_id, identity.email, identity.name) == (user_id, EMAIL, "Ada")
    assert identity.roles == ("admin", "member")
    assert identity.has_role("admin")
    assert not identity.has_role("manager")
    assert made.expires_in == 900
    (row,) = accounts.database.query("SELECT last_login_at FROM users")
    assert row.last_login_at is not None


def test_only_hashes_are_stored(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """Neither a token nor an id of one is in the database, and neither is shown by what holds it."""
    add_user()
    made = accounts.sign_in(EMAIL, password)
    rows = accounts.database.query("SELECT token_type, token_hash, row_to_json(t)::text FROM auth_tokens t")
    assert {row[0] for row in rows} == {"access", "refresh"}
    token_id = accounts.check(made.access).token_id
    for secret in (made.access, made.refresh, token_id):
        assert all(secret not in row[2] for row in rows)
        assert secret not in repr(made) + repr(accounts.check(made.access))
    assert {row[1] for row in rows} == {tokens.hashed(made.refresh), tokens.hashed(token_id)}


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ({}, "not the password"),
        ({}, ""),
        ({}, "correct horse battery staple "),
        ({}, "x" * 1_000_000),
        ({}, "\ud800"),
        ({"active": False}, None),
        ({"verified": False}, None),
        ({"email": "other@example.com"}, None),
        ({"password_hash": "mine"}, "mine"),
    ],
)
def test_every_failure_is_one_answer(
    accounts: Accounts, add_user: AddUser, password: str, kind: dict[str, Any], given: str | None
) -> None:
    """A wrong password, no such user, one who may not, and what is no password say the same, and store nothing."""
    add_user(**kind)
    with pytest.raises(SignInError) as caught:
        accounts.sign_in(EMAIL, password if given is None else given)
    assert str(caught.value) == str(SignInError())
    assert caught.value.__cause__ is None
    assert accounts.database.query("SELECT count(*) FROM auth_tokens") == [(0,)]


@pytest.mark.gate
def test_failures_take_the_same_time(database: Database, keys: Keys, outbox: Any, add_user: AddUser) -> None:
    """Unknown, wrong, inactive, unverified, and a hash of older data: medians lie within a third of one another.

    Either of the two hashes left out would halve one of them; none at all would take a hundredth. Times are the
    thread's own, which nothing else at work on the machine adds to.
    """
    cost = Cost(rounds=3, memory_kib=40_960, lanes=1)  # about what bcrypt takes, so that either one shows
    accounts = Accounts(database, keys, outbox, Policy(cost=cost))
    right = "correct horse battery staple"
    new = Hasher(cost).hash(right)
    old = bcrypt.hashpw(right.encode(), bcrypt.gensalt(10, b"2a")).decode()
    add_user("known@example.com", password_hash=new)
    add_user("inactive@example.com", password_hash=new, active=False)
    add_user("unverified@example.com", password_hash=new, verified=False)
    add_user("old@example.com", password_hash=old)
    add_user("closed@example.com", password_hash=old, active=False)
    tries = {
        "unknown": ("nobody@example.com", right),
        "wrong": ("known@example.com", "wrong horse battery staple"),
        "inactive": ("inactive@example.com", right),
        "unverified": ("unverified@example.com", right),
        "old and wrong": ("old@example.com", "wrong horse battery staple"),
        "old and inactive": ("closed@example.com", right),
    }
    took: dict[str, list[float]] = {name: [] for name in tries}
    for number in range(8):
        for name, (email, password) in tries.items():
            began = time.thread_time()
            with pytest.raises(SignInError):
                # From everywhere, so that nobody has to wait.
                accounts.sign_in(email, password, f"203.0.113.{number}")
            took[name].append(time.thread_time() - began)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in took.items()}
    assert max(medians.values()) / min(medians.values()) < 4 / 3, medians


def test_bcrypt_of_older_data_is_upgraded_at_sign_in(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """The first sign-in with a hash of `$2a$10$…` stores argon2id in its place; a failed one leaves it."""
    old = bcrypt.hashpw(password.encode(), bcrypt.gensalt(10, b"2a")).decode()
    assert old.startswith("$2a$10$")
    add_user(password_hash=old)
    with pytest.raises(SignInError):
        accounts.sign_in(EMAIL, "not the password")
    assert accounts.database.query("SELECT password_hash FROM users") == [(old,)]
    accounts.sign_in(EMAIL, password)
    ((new,),) = accounts.database.query("SELECT password_hash FROM users")
    assert new.startswith("$argon2id$")
    accounts.sign_in(EMAIL, password)
    assert accounts.database.query("SELECT password_hash FROM users") == [(new,)]


@pytest.mark.parametrize("change", ["password_hash = 'other'", "is_active = false", "email_verified = false"])
def test_change_while_the_password_is_checked_counts(
    accounts: Accounts, add_user: AddUser, password: str, change: str
) -> None:
    """Whoever is deactivated, or gets a new password, while theirs is hashed, is not signed in."""
    add_user()
    matches = accounts._hasher.matches

    def slow(*given: Any, **more: Any) -> bool:
        accounts.database.execute(f"UPDATE users SET {change}")
        return matches(*given, **more)

    accounts._hasher.matches = slow  # type: ignore[method-assign]
    with pytest.raises(SignInError):
        accounts.sign_in(EMAIL, password)
    assert accounts.database.query("SELECT count(*) FROM auth_tokens") == [(0,)]


def test_refresh_gives_new_tokens_and_keeps_the_old_access_token(
    accounts: Accounts, add_user: AddUser, password: str
) -> None:
    """A refresh token is exchanged for others; the sign-in ends when it would have ended, however often."""
    add_user()
    first = accounts.sign_in(EMAIL, password)
    second = accounts.refresh(first.refresh)
    third = accounts.refresh(second.refresh)
    assert len({first.refresh, second.refresh, third.refresh}) == 3
    assert all(is_good(accounts, each.access) for each in (first, second, third))
    rows = accounts.database.query("SELECT DISTINCT expires_at, family_id FROM auth_tokens WHERE token_type='refresh'")
    assert len(rows) == 1
    used = accounts.database.query("SELECT last_used_at IS NOT NULL FROM auth_tokens WHERE token_type='refresh'")
    assert sorted(used) == [(False,), (True,), (True,)]


@pytest.mark.parametrize("thief_is_first", [True, False])
def test_stolen_refresh_token_ends_the_sign_in(
    accounts: Accounts, add_user: AddUser, password: str, thief_is_first: bool
) -> None:
    """Whoever of thief and owner comes second, all that came of the sign-in is revoked; other sign-ins go on."""
    add_user()
    stolen = accounts.sign_in(EMAIL, password)
    elsewhere = accounts.sign_in(EMAIL, password)
    later = accounts.refresh(stolen.refresh)
    if not thief_is_first:
        later = accounts.refresh(later.refresh)
    with pytest.raises(TokenError):
        accounts.refresh(stolen.refresh)
    with pytest.raises(TokenError):
        accounts.refresh(later.refresh)
    assert not is_good(accounts, stolen.access)
    assert not is_good(accounts, later.access)
    assert is_good(accounts, elsewhere.access)
    assert accounts.refresh(elsewhere.refresh)


def test_concurrent_refresh_has_one_winner_and_ends_the_sign_in(
    accounts: Accounts, add_user: AddUser, password: str, at_once: AtOnce
) -> None:
    """Of eight that show one token at the same moment one gets others, and those are revoked by the second."""
    add_user()
    for _ in range(5):
        made = accounts.sign_in(EMAIL, password)
        results = at_once(8, lambda _, made=made: accounts.refresh(made.refresh))
        (winner,) = [result for result in results if isinstance(result, Tokens)]
        assert sum(isinstance(result, TokenError) for result in results) == 7
        assert not is_good(accounts, winner.access)
        with pytest.raises(TokenError):
            accounts.refresh(winner.refresh)


def test_tokens_of_one_kind_are_no_good_as_another(
    accounts: Accounts, add_user: AddUser, password: str, outbox: Any
) -> None:
    """An access token's id refreshes nothing, a refresh token resets nothing, what came by mail signs nobody in."""
    add_user()
    made = accounts.sign_in(EMAIL, password)
    token_id = accounts.check(made.access).token_id
    accounts.request_password_reset(EMAIL)
    mailed = outbox.last("reset").token
    for wrong in (made.access, token_id, mailed):
        with pytest.raises(TokenError):
            accounts.refresh(wrong)
    for wrong in (made.access, made.refresh, token_id):
        with pytest.raises(TokenError):
            accounts.reset_password(wrong, "another horse battery staple")
    for wrong in (made.refresh, mailed, token_id):
        with pytest.raises(TokenError):
            accounts.verify_email(wrong)
        with pytest.raises(TokenError):
            accounts.check(wrong)
    assert is_good(accounts, made.access)


def test_sign_out_holds_at_once(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """A replayed access token, a refreshed one of the same sign-in, and the refresh token are no good after it."""
    add_user()
    first, other = accounts.sign_in(EMAIL, password), accounts.sign_in(EMAIL, password)
    second = accounts.refresh(first.refresh)
    accounts.sign_out(first.access)
    assert not is_good(accounts, first.access)
    assert not is_good(accounts, second.access)
    assert is_good(accounts, other.access)
    for again in (lambda: accounts.refresh(second.refresh), lambda: accounts.sign_out(first.access)):
        with pytest.raises(TokenError):
            again()


def test_sign_out_everywhere_is_of_one_user(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """All of a user's sign-ins end, nobody else's does, and a user who does not exist is nothing to worry about."""
    user_id = add_user()
    add_user("ben@example.com")
    mine = [accounts.sign_in(EMAIL, password) for _ in range(3)]
    theirs = accounts.sign_in("ben@example.com", password)
    accounts.sign_out_everywhere(user_id)
    accounts.sign_out_everywhere(uuid4())
    assert not any(is_good(accounts, each.access) for each in mine)
    assert is_good(accounts, theirs.access)
    assert accounts.sign_in(EMAIL, password)


def test_deactivation_holds_at_once(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """A deactivated user is out, by the verb and by hand in SQL; activated again, they have to sign in."""
    add_user()
    add_user("ben@example.com")
    mine, theirs = accounts.sign_in(EMAIL, password), accounts.sign_in("ben@example.com", password)
    with psycopg.connect(accounts.database.url.text(secrets=True), autocommit=True) as connection:
        users.deactivate(connection, EMAIL)
    accounts.database.execute("UPDATE users SET is_active = false WHERE email = 'ben@example.com'")
    for each in (mine, theirs):
        assert not is_good(accounts, each.access)
        with pytest.raises(TokenError):
            accounts.refresh(each.refresh)
    with psycopg.connect(accounts.database.url.text(secrets=True), autocommit=True) as connection:
        users.activate(connection, EMAIL)
    assert not is_good(accounts, mine.access)
    assert accounts.sign_in(EMAIL, password)


def test_nobody_signs_in_past_a_deactivation(
    accounts: Accounts, add_user: AddUser, password: str, at_once: AtOnce
) -> None:
    """Sign-ins and refreshes that race with a deactivation end before it or fail: nothing good is left."""
    add_user()
    held = [accounts.sign_in(EMAIL, password) for _ in range(4)]

    def work(number: int) -> Any:
        if number < 4:
            return accounts.refresh(held[number].refresh)
        if number < 8:
            return accounts.sign_in(EMAIL, password, f"203.0.113.{number}")
        with psycopg.connect(accounts.database.url.text(secrets=True), autocommit=True) as connection:
            return users.deactivate(connection, EMAIL)

    results = at_once(9, work)
    for each in (*held, *results):
        if isinstance(each, Tokens):
            assert not is_good(accounts, each.access)
    left = accounts.database.query("SELECT count(*) FROM auth_tokens WHERE revoked_at IS NULL AND last_used_at IS NULL")
    assert left == [(0,)]


def test_expired_tokens_are_refused_by_the_database_too(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """What the database says has expired is no good, though the signature says otherwise."""
    add_user()
    made = accounts.sign_in(EMAIL, password)
    accounts.database.execute("UPDATE auth_tokens SET expires_at = now()")
    assert not is_good(accounts, made.access)
    for use in (lambda: accounts.refresh(made.refresh), lambda: accounts.sign_out(made.access)):
        with pytest.raises(TokenError):
            use()


def test_token_of_another_user_is_refused(accounts: Accounts, add_user: AddUser, keys: Keys, password: str) -> None:
    """A signed token whose id belongs to somebody else is no good, even to whoever has the key."""
    add_user()
    made = accounts.sign_in(EMAIL, password)
    token_id = accounts.check(made.access).token_id
    assert not is_good(accounts, tokens.sign(keys, uuid4(), token_id, 60))
    assert not is_good(accounts, tokens.sign(keys, uuid4(), tokens.new(), 60))


def test_forged_token_costs_no_query(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """The signature is looked at first: whoever makes tokens up does not reach the database."""
    add_user()
    made = accounts.sign_in(EMAIL, password)
    accounts.close()
    with pytest.raises(TokenError):
        accounts.check(made.access[:-4] + "AAAA")


def test_roles_hold_from_the_next_request_on(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """Roles are not in the token: one that is granted or revoked counts at once."""
    add_user()
    made = accounts.sign_in(EMAIL, password)
    assert accounts.check(made.access).roles == ()
    accounts.database.execute("INSERT INTO user_roles (user_id, role_id) SELECT users.id, roles.id FROM users, roles")
    assert accounts.check(made.access).roles == ("admin", "manager", "member")
    accounts.database.execute("DELETE FROM user_roles")
    assert accounts.check(made.access).roles == ()


SQL = ["' OR '1'='1", "'; DROP TABLE users; --", "\\'; DELETE FROM auth_tokens; --", "%s %(a)s :email $1", "{0}", "\0"]


@pytest.mark.parametrize("text", SQL)
def test_sql_in_every_field_is_text(
    accounts: Accounts, add_user: AddUser, password: str, text: str, outbox: Any
) -> None:
    """In whatever field SQL stands, it is refused or stored as it is; nobody gets in, and nothing is gone."""
    add_user()
    made = accounts.sign_in(EMAIL, password)
    long = text + " and some more words"
    tries: list[Callable[[], object]] = [
        lambda: accounts.sign_in(text, password, text),
        lambda: accounts.sign_in(f"ada@example.com{text}", password),
        lambda: accounts.sign_in(EMAIL, text, text),
        lambda: accounts.register(text, password, "Ada", text),
        lambda: accounts.register("new@example.com", long, f"N {text}", text),
        lambda: accounts.refresh(text),
        lambda: accounts.check(text),
        lambda: accounts.sign_out(text),
        lambda: accounts.verify_email(text),
        lambda: accounts.request_password_reset(text, text),
        lambda: accounts.reset_password(text, long, text),
        lambda: accounts.change_password(text, text, long, text),
    ]
    succeeded = 0
    for each in tries:
        try:
            each()
            succeeded += 1
        except AccountError:
            pass
    assert succeeded <= 1  # to register, with a name that is no SQL to anybody
    names = accounts.database.query("SELECT name FROM users WHERE email <> :email", email=EMAIL)
    assert names == ([(f"N {text}",)] if succeeded else [])
    assert is_good(accounts, made.access)


@pytest.mark.parametrize("call", ["sign in", "register", "change password"])
def test_error_of_the_database_shows_no_hash(accounts: Accounts, add_user: AddUser, password: str, call: str) -> None:
    """What fails in the database goes to a log: there stands the statement, and neither address nor hash."""
    add_user()
    doing = {
        "sign in": lambda: accounts.sign_in("ada@example.com", password),
        "register": lambda: accounts.register("new@example.com", password, "New"),
        "change password": lambda: accounts.change_password("ada@example.com", password, password[::-1]),
    }
    accounts.database.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$no$$; END'"
    )
    accounts.database.execute("CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON users EXECUTE FUNCTION fail()")
    with pytest.raises(DBAPIError, match=r"SELECT .*auth\.") as caught:
        doing[call]()
    told = "".join(traceback.format_exception(caught.value))
    assert "$argon2id$" not in told
    assert "@example.com" not in str(caught.value)


def test_when_tokens_were_last_shown_is_kept(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """Of many together and not with each request; whoever revokes one at that moment is not waited for."""
    add_user()
    query = "SELECT count(*) FROM auth_tokens WHERE last_used_at IS NOT NULL"
    made = [accounts.sign_in(EMAIL, password) for _ in range(3)]
    for each in made:
        accounts.check(each.access)
    assert accounts.database.query(query) == [(0,)]
    with psycopg.connect(accounts.database.url.text(secrets=True)) as other:
        other.execute("SELECT FROM auth_tokens WHERE token_type = 'access' ORDER BY created_at LIMIT 1 FOR UPDATE")
        accounts._shown._due = time.monotonic()  # a minute later
        accounts.check(made[2].access)
    assert accounts.database.query(query) == [(2,)]
    assert accounts.refresh(made[0].refresh)  # one that was shown is not one that was spent


def test_last_shown_is_written_at_the_end(accounts: Accounts, add_user: AddUser, password: str) -> None:
    """A program that closes its accounts loses nothing of it; one that cannot write says so and goes on."""
    add_user()
    made = accounts.sign_in(EMAIL, password)
    with Database(accounts.database.url, production=False) as other:
        elsewhere = Accounts(other, accounts._keys, accounts._mail, accounts.policy)
        elsewhere.check(made.access)
        elsewhere.close()
    query = "SELECT last_used_at IS NOT NULL FROM auth_tokens WHERE token_type = 'access'"
    assert accounts.database.query(query) == [(True,)]


def test_last_shown_that_cannot_be_written_fails_no_request(
    accounts: Accounts, add_user: AddUser, password: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said in the log, without a hash."""
    add_user()
    made = accounts.sign_in(EMAIL, password)
    accounts.database.execute("DROP FUNCTION auth.shown(text[])")
    accounts._shown._due = time.monotonic()
    assert accounts.check(made.access).email == EMAIL
    assert caplog.messages == ["when 1 access tokens were last shown is not kept: ProgrammingError"]
