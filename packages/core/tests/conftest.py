"""What tests of sign-in share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any
from uuid import UUID

import bcrypt
import pytest

from atriz_core.accounts import Accounts, Policy
from atriz_core.errors import AccountError
from atriz_core.mail import Message
from atriz_core.passwords import Cost, Hasher
from atriz_core.tokens import Keys
from atriz_database import Database

PASSWORD = "correct horse battery staple"
# Cheap, where nothing is measured: what a hash costs is argon2's business.
CHEAP = Cost(rounds=1, memory_kib=8, lanes=1)


@dataclass
class Outbox:
    """Keeps mail instead of sending it."""

    messages: list[Message] = field(default_factory=list)

    def send(self, message: Message) -> None:
        """Keep the message."""
        self.messages.append(message)

    def last(self, kind: str) -> Message:
        """Return the last message, which is of that kind."""
        assert self.messages[-1].kind == kind
        return self.messages[-1]


@pytest.fixture
def password() -> str:
    """Return the password that users of `add_user` have."""
    return PASSWORD


@pytest.fixture
def outbox() -> Outbox:
    """Return where the mail of `accounts` goes."""
    return Outbox()


@pytest.fixture
def keys() -> Keys:
    """Return the keys of `accounts`."""
    return Keys.parse("b:" + "b" * 32 + ",a:" + "a" * 32)


@pytest.fixture
def policy() -> Policy:
    """Return a policy that differs from the default in what a hash costs."""
    return Policy(cost=CHEAP)


@pytest.fixture
def accounts(database: Database, keys: Keys, outbox: Outbox, policy: Policy) -> Accounts:
    """Return accounts in a database of the test's own, in which nobody has one yet."""
    made = Accounts(database, keys, outbox, policy)
    # Nobody's password as cheap as everybody's: some of the tests fail a hundred times.
    made._hasher._nobodys_bcrypt = bcrypt.hashpw(b"nobody's", bcrypt.gensalt(4))
    return made


@pytest.fixture
def add_user(database: Database) -> Callable[..., UUID]:
    """Return a function that makes a user who can sign in with `password`, and returns their id."""
    hashed = Hasher(CHEAP).hash(PASSWORD)

    def add(
        email: str = "ada@example.com", *, password_hash: str = hashed, active: bool = True, verified: bool = True
    ) -> UUID:
        ((user_id,),) = database.query(
            "INSERT INTO users (email, name, password_hash, is_active, email_verified)"
            " VALUES (:email, 'Ada', :hash, :active, :verified) RETURNING id",
            email=email,
            hash=password_hash,
            active=active,
            verified=verified,
        )
        return user_id

    return add


@pytest.fixture
def at_once() -> Callable[[int, Callable[[int], Any]], list[Any]]:
    """Return a function that does some work in so many threads, all of which begin at the same moment.

    It returns what each returned, or the `AccountError` that it raised.
    """

    def run(count: int, work: Callable[[int], Any]) -> list[Any]:
        barrier = Barrier(count)

        def one(number: int) -> Any:
            barrier.wait()
            try:
                return work(number)
            except AccountError as error:
                return error

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, range(count)))

    return run
