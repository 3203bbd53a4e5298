"""Passwords: which are taken, how they are hashed, and checks that take the same time whatever is wrong.

Argon2id for all that is stored here. Hashes of bcrypt, from older data, are verified, and replaced at the next sign-in.
"""

from __future__ import annotations

import os
import secrets
import threading
import unicodedata
from base64 import b64encode
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import argon2
import bcrypt

from atriz_core.errors import InputError, ThrottledError

LONGEST = 256
"""How many characters a password may have. Who needs more than 64, as NIST asks to allow, has a passphrase."""
_FEWEST_DISTINCT = 5
# Of what a guesser tries first, the parts. What is left of a password without them has to be of some length.
_COMMON = (
    *("passwort", "password", "parola", "motdepasse", "contrasena", "senha", "letmein", "iloveyou", "welcome"),
    *("administrator", "admin", "default", "changeme", "secret", "master", "superman", "batman", "dragon", "monkey"),
    *("princess", "sunshine", "football", "baseball", "trustno", "starwars", "whatever", "freedom", "computer"),
    *("abcdefghijklmnopqrstuvwxyz", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop", "azertyuiop", "yxcvbnm"),
    *("abcdefgh", "abcdef", "abcd", "qwerty", "qwertz", "azerty", "asdfgh", "asdf", "1q2w3e4r5t", "1q2w3e", "1qaz2wsx"),
    *("12345678901234567890", "1234567890", "123456789", "12345678", "1234567", "123456", "12345", "1234", "atriz"),
)  # fmt: skip
_FEWEST_LEFT = 5
_FULL_SECONDS = 1.0
_BCRYPT_BYTES = 72
# What older data was hashed with; a dummy takes as long.
_BCRYPT_COST = 10
# What a stored hash may ask of us at most, about a second: an app that is broken into could store one that takes hours
# or all the memory of the others, which check it.
_HIGHEST_BCRYPT_COST = 14
_MOST_MEMORY, _MOST_WORK = 4, 16  # times our own, or the default where that is more


def refuse(password: str, shortest: int, blocked: Collection[str] = (), about: Collection[str] = ()) -> None:
    """Refuse a password that is too short, too long or too common; its composition is its owner's business.

    As NIST SP 800-63B-4 has it: a length (in code points), no rules on which characters, and a list of what is refused.

    :param shortest: how many characters it needs.
    :param blocked: passwords that are known to be common, such as those of breaches, in lower case.
    :param about: what the owner is called; a password that is little more than that is refused.

    Raise `InputError` if it cannot be taken.
    """
    # Before anything reads it as a whole: a megabyte costs nothing.
    if len(password) > LONGEST:
        raise InputError("password", f"The password is too long: it may have {LONGEST} characters at most.")
    if _bytes(password) is None:
        raise InputError("password", "The password holds half a character (a lone surrogate). Write it anew.")
    text = unicodedata.normalize("NFKC", password)
    if len(text) < shortest:
        raise InputError(
            "password",
            f"The password is too short: it needs {shortest} characters at least. Four words that have nothing to do "
            "with one another will do.",
        )
    folded = text.casefold()
    left = folded
    words = [part for name in about for part in (name, *name.replace("@", " ").replace(".", " ").split())]
    for word in (*sorted((each.casefold() for each in words), key=len, reverse=True), *_COMMON):
        if len(word) > 2:
            left = left.replace(word, "")
    if len(set(folded)) < _FEWEST_DISTINCT or len(set(left)) < _FEWEST_LEFT or folded in blocked:
        raise InputError(
            "password",
            "The password is one of those that are tried first: common words, rows of keys, your own name or "
            "address. Four words that have nothing to do with one another will do.",
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What a hash costs. The defaults are argon2-cffi's: RFC 9106's second choice, for where memory is not plenty."""

    rounds: int = 3
    memory_kib: int = 65536
    lanes: int = 4


class Hasher:
    """Hashes passwords and checks them.

    :param cost: what a new hash costs; a stored one that cost something else is replaced at the next sign-in.
    :param at_once: how many are hashed at the same time, others wait; as many as there are cores where not given. Each
        takes its memory, so that a flood of sign-ins would else take all of it.
    :param waiting: how many may wait for that. Who comes then is told to come back: whoever waits holds a thread, of
        which a web server has few (FastAPI forty), and others have other things to ask.
    """

    def __init__(self, cost: Cost = Cost(), *, at_once: int | None = None, waiting: int = 16) -> None:
        self._argon2 = argon2.PasswordHasher(cost.rounds, cost.memory_kib, cost.lanes)
        at_once = at_once or os.cpu_count() or 1
        self._turns = threading.BoundedSemaphore(at_once)
        self._places = threading.BoundedSemaphore(at_once + waiting)
        # Nobody's: what is checked where there is nothing to check. Of random bytes, so that no password fits.
        parameters = f"$argon2id$v={argon2.low_level.ARGON2_VERSION}$m={cost.memory_kib},t={cost.rounds},p={cost.lanes}"
        self._nobodys_argon2 = "$".join((parameters, _base64(16), _base64(32)))
        self._nobodys_bcrypt = bcrypt.hashpw(secrets.token_bytes(32), bcrypt.gensalt(4)).replace(
            b"$04$", b"$%02d$" % _BCRYPT_COST
        )

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place among those who hash or wait to, before anything is counted for them.

        Raise `ThrottledError` if all are taken.
        """
        if not self._places.acquire(blocking=False):
            raise ThrottledError(_FULL_SECONDS)
        try:
            yield
        finally:
            self._places.release()

    def hash(self, password: str) -> str:
        """Return the hash of a password that :func:`refuse` takes, encoded, with its salt and its cost."""
        with self._turns:
            return self._argon2.hash(_bytes(password) or b"")

    def matches(self, stored: str | None, password: str, *, is_usable: bool) -> bool:
        """Return whether a password is the one of `stored`, and its account one that may sign in.

        A no takes the same time whatever is the reason: one hash of argon2 and one of bcrypt, of nobody's password
        where there is none of somebody's. A yes takes the one that it needs.

        :param stored: the stored hash, `None` where there is no such account.
        :param is_usable: whether the account may sign in.
        """
        given = _bytes(password) if len(password) <= LONGEST else None
        kind = "" if stored is None or given is None or self._is_endless(stored) else stored[:4]
        given = given or b""
        with self._turns:
            if kind in ("$2a$", "$2b$", "$2y$") and stored is not None:
                # As it was hashed then: not normalised, and cut off where bcrypt ends.
                fits = self._fits_bcrypt(stored.encode(), password.encode())
                if not (fits and is_usable):
                    self._fits_argon2(self._nobodys_argon2, given)
            else:
                is_ours = kind == "$arg" and stored is not None
                fits = self._fits_argon2(stored if is_ours and stored else self._nobodys_argon2, given) and is_ours
                if not (fits and is_usable):
                    self._fits_bcrypt(self._nobodys_bcrypt, given)
        return fits and is_usable

    def is_outdated(self, stored: str) -> bool:
        """Return whether a hash is to be replaced: it is of bcrypt, or cost something else."""
        return not stored.startswith("$argon2id$") or self._argon2.check_needs_rehash(stored)

    def _is_endless(self, stored: str) -> bool:
        """Return whether to check a hash would cost far more than one of ours."""
        if not stored.startswith("$arg"):
            return stored[4:6].isdecimal() and int(stored[4:6]) > _HIGHEST_BCRYPT_COST
        try:
            asked = argon2.extract_parameters(stored)
        except (argon2.exceptions.InvalidHashError, ValueError):
            return False  # nor is it one that is checked
        ours = (Cost(), Cost(self._argon2.time_cost, self._argon2.memory_cost))
        memory = max(cost.memory_kib for cost in ours)
        work = max(cost.memory_kib * cost.rounds for cost in ours)
        return asked.memory_cost > _MOST_MEMORY * memory or asked.memory_cost * asked.time_cost > _MOST_WORK * work

    def _fits_argon2(self, stored: str, given: bytes) -> bool:
        try:
            return self._argon2.verify(stored, given)
        except argon2.exceptions.VerifyMismatchError:
            return False
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            # Not a hash, whatever its beginning says: takes the time of one all the same.
            return stored != self._nobodys_argon2 and self._fits_argon2(self._nobodys_argon2, given)

    def _fits_bcrypt(self, stored: bytes, given: bytes) -> bool:
        try:
            return bcrypt.checkpw(given[:_BCRYPT_BYTES], stored)
        except ValueError:
            return stored != self._nobodys_bcrypt and self._fits_bcrypt(self._nobodys_bcrypt, given)


def _bytes(password: str) -> bytes | None:
    """Return what is hashed: the same for every way to type the same (NFKC). `None` for half a character."""
    try:
        return unicodedata.normalize("NFKC", password).encode()
    except UnicodeEncodeError:
        return None


def _base64(length: int) -> str:
    return b64encode(secrets.token_bytes(length)).decode().rstrip("=")
