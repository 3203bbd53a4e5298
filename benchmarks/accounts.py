"""The ways of the topic signin, in one process: each has its turn in each round, and what it took is printed.

``python -m benchmarks.accounts ROUNDS COUNT NUMBER-OF-WAYS WAY … URL …``.
The clock begins when all is imported, connected and warm.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import islice, zip_longest
from uuid import UUID

import argon2

from atriz_core import tokens
from atriz_core.accounts import Accounts
from atriz_core.errors import TokenError
from atriz_core.mail import ConsoleMail
from atriz_core.tokens import Keys
from atriz_database import Database

PASSWORD = "correct horse battery staple"
ROW = "floor B: SELECT of the token alone"
NEEDED = "floor A: SELECT of token, user and roles"
SIGNATURE = "the signature alone"
CHECK = "atriz check()"
REFRESH = "atriz refresh()"
UNKNOWN = "atriz check() of a revoked token"
HASH = "floor A: the hash alone"
SIGN_IN = "atriz sign_in()"
KEYS = Keys.parse("bench:" + "k" * 43)

_ROW = "SELECT user_id, expires_at, revoked_at FROM auth_tokens WHERE token_hash = :hash"
_NEEDED = (
    "SELECT u.id, u.email, u.name, ARRAY(SELECT r.name FROM user_roles ur JOIN roles r ON r.id = ur.role_id"
    " WHERE ur.user_id = u.id ORDER BY r.name) FROM auth_tokens t JOIN users u ON u.id = t.user_id"
    " WHERE t.token_hash = :hash AND t.token_type = 'access' AND t.revoked_at IS NULL AND t.expires_at > now()"
    " AND u.is_active"
)
# Tables are read as a whole only where they hold next to nothing.
_SCANS = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname IN ('users', 'auth_tokens', 'attempts')"


def main(rounds: int, count: int, ways: list[str], urls: list[str]) -> dict[str, object]:
    """Return the seconds of each way's turns in each database, and how often tables were read as a whole meanwhile."""
    with ExitStack() as stack:
        databases = [stack.enter_context(Database(url, pool_size=10)) for url in urls]
        made = {}
        for number, database in enumerate(databases):
            accounts = Accounts(database, KEYS, ConsoleMail())
            for way in ways:
                # All of it before: what it takes to choose tokens reads whole tables.
                made[f"{number} {way}"] = list(islice(_WAYS[way](accounts, count), rounds + 1))
        took: dict[str, list[float]] = {name: [] for name in made}
        before = [_scans(database) for database in databases]
        for number in range(-1, rounds):
            seconds = _turns({name: made[name][number] for name in (list(made) if number % 2 else list(made)[::-1])})
            if number >= 0:  # one to warm up
                for name in made:
                    took[name].append(seconds[name])
        scans = [_scans(database) - was for database, was in zip(databases, before, strict=True)]
        return {"took": took, "scans": scans}


def _turns(works: dict[str, list[Callable[[], object]]]) -> dict[str, float]:
    """Return the seconds of each way's works, which take turns one by one: what else runs slows them all alike."""
    seconds = dict.fromkeys(works, 0.0)
    for turn in zip_longest(*works.values()):
        for way, work in zip(works, turn, strict=True):
            if work is not None:
                began = time.perf_counter()
                work()
                seconds[way] += time.perf_counter() - began
    return seconds


def _scans(database: Database) -> int:
    database.query("SELECT pg_stat_force_next_flush()")
    return sum(row.seq_scan for row in database.query(_SCANS))


Turns = Iterator[list[Callable[[], object]]]


def _some(accounts: Accounts, kind: str, count: int) -> list[tuple[str, UUID]]:
    """Return the names of tokens of that kind, from all over the table, and whose they are."""
    ((most,),) = accounts.database.query("SELECT count(*) FROM users")
    names = [f"{kind} {random.randrange(most) + 1}" for _ in range(count)]
    statement = "SELECT token_hash, user_id FROM auth_tokens WHERE token_hash = ANY(:hashes)"
    found = dict(accounts.database.query(statement, hashes=[tokens.hashed(name) for name in names]))
    return [(name, found[tokens.hashed(name)]) for name in names]


def _select(statement: str) -> Callable[[Accounts, int], Turns]:
    def turns(accounts: Accounts, count: int) -> Turns:
        while True:
            hashes = [tokens.hashed(name) for name, _ in _some(accounts, "access", count)]

            def works(hashes: list[str] = hashes) -> list[Callable[[], object]]:
                return [lambda h=h: accounts.database.query(statement, hash=h) for h in hashes]  # type: ignore[misc]

            yield works()

    return turns


def _signature(accounts: Accounts, count: int) -> Turns:
    while True:
        signed = [tokens.sign(KEYS, user, name, 900) for name, user in _some(accounts, "access", count)]
        yield [lambda t=token: tokens.verify(KEYS, t) for token in signed]  # type: ignore[misc]


def _check(kind: str) -> Callable[[Accounts, int], Turns]:
    def one(accounts: Accounts, token: str) -> None:
        with suppress(*((TokenError,) if kind == "revoked" else ())):
            accounts.check(token)

    def turns(accounts: Accounts, count: int) -> Turns:
        while True:
            signed = [tokens.sign(KEYS, user, name, 900) for name, user in _some(accounts, kind, count)]
            if kind == "revoked":
                yield [lambda t=token: one(accounts, t) for token in signed]  # type: ignore[misc]
            else:
                yield [lambda t=token: accounts.check(t) for token in signed]  # type: ignore[misc]

    return turns


def _refresh(accounts: Accounts, count: int) -> Turns:
    """Each writes and commits, so there are fewer."""
    held = [name for name, _ in _some(accounts, "refresh", 10 * count)]
    fresh = iter(dict.fromkeys(held))
    while True:
        turn = [next(fresh) for _ in range(max(1, count // 10))]
        yield [lambda t=token: accounts.refresh(t) for token in turn]  # type: ignore[misc]


def _hash(accounts: Accounts, count: int) -> Turns:
    hasher = argon2.PasswordHasher()
    stored = hasher.hash(PASSWORD)
    while True:
        yield [lambda: hasher.verify(stored, PASSWORD)] * count


def _sign_in(accounts: Accounts, count: int) -> Turns:
    accounts.database.execute(
        "UPDATE users SET password_hash = :hash WHERE email = 'user1@example.com'",
        hash=argon2.PasswordHasher().hash(PASSWORD),
    )
    while True:
        yield [lambda: accounts.sign_in("user1@example.com", PASSWORD, "203.0.113.9")] * count


_WAYS: dict[str, Callable[[Accounts, int], Turns]] = {
    ROW: _select(_ROW),
    NEEDED: _select(_NEEDED),
    SIGNATURE: _signature,
    CHECK: _check("access"),
    UNKNOWN: _check("revoked"),
    REFRESH: _refresh,
    HASH: _hash,
    SIGN_IN: _sign_in,
}


if __name__ == "__main__":
    _rounds, _count, _of_them, *_words = sys.argv[1:]
    _ways, _urls = _words[: int(_of_them)], _words[int(_of_them) :]
    print(json.dumps(main(int(_rounds), int(_count), _ways, _urls)))
