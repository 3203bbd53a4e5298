"""Which passwords are taken, and how they are hashed and checked."""

from __future__ import annotations

import threading
import time
import unicodedata

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atriz_core import passwords
from atriz_core.errors import InputError
from atriz_core.passwords import LONGEST, Cost, Hasher

CHEAP = Cost(rounds=1, memory_kib=8, lanes=1)
GOOD = "correct horse battery staple"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "größer als gedacht!",
        "пятнадцать слов подряд",
        "🦊🐻🐼🐨🐯🦁🐮🐷🐸🐵🐔🐧🐦🐤🐣",
        "m" + "xkqzwv jhgpt" * 10,
        "        spaces are characters        ",
    ],
)
def test_long_password_of_any_characters_is_taken(text: str) -> None:
    """Length alone counts: letters of any script, spaces and emoji are taken, with no rule on which."""
    passwords.refuse(text, 15)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fourteen chars"[:14],
        "a" * 40,
        "passwordpassword",
        "Password12345678",
        "qwertyuiopasdfghjkl",
        "123456789012345678",
        "adaadaadaadaada",
        "ada@example.com!",
        "Ada Okafor Ada Okafor",
        "an old password of a breach",
        "x" * (LONGEST + 1),
        "half a character \ud83d at its end",
    ],
)
def test_short_common_and_endless_passwords_are_refused(text: str) -> None:
    """What is too short, too long, no text, or what a guesser tries first, is refused with what is asked for."""
    with pytest.raises(InputError) as caught:
        passwords.refuse(text, 15, {"an old password of a breach"}, ("ada@example.com", "Ada Okafor"))
    assert caught.value.field == "password"
    assert text == "" or text not in str(caught.value)


def test_length_counts_characters_and_not_bytes() -> None:
    """Fourteen letters of three bytes each are too few, fifteen are enough, a minimum of eight may be set."""
    with pytest.raises(InputError):
        passwords.refuse("日一国会人年大十二本中長出三", 15)
    passwords.refuse("日一国会人年大十二本中長出三同", 15)
    passwords.refuse("nine char", 8)


def test_megabyte_is_refused_before_anything_reads_it() -> None:
    """A password of a megabyte, in letters that grow when they are normalised, takes no time: it is not looked at."""
    text = "\ufdfa" * 1_000_000
    began = time.thread_time()
    with pytest.raises(InputError):
        passwords.refuse(text, 15)
    assert not Hasher(CHEAP).matches(None, text, is_usable=True)
    assert time.thread_time() - began < 0.5


def test_hash_is_argon2id_with_a_salt_of_its_own() -> None:
    """Two hashes of one password differ, and both fit it and no other."""
    hasher = Hasher()
    first, second = hasher.hash(GOOD), hasher.hash(GOOD)
    assert first.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert first != second
    assert hasher.matches(first, GOOD, is_usable=True)
    assert not hasher.matches(first, GOOD.upper(), is_usable=True)
    assert not hasher.matches(first, GOOD, is_usable=False)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_the_same_text_typed_in_another_way_fits(text: str) -> None:
    """An accent as a character of its own, or a full-width letter, is the same password on every keyboard."""
    hasher = Hasher(CHEAP)
    stored = hasher.hash(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert hasher.matches(stored, unicodedata.normalize(form, text), is_usable=True)


@pytest.mark.parametrize("prefix", [b"2a", b"2b", b"2y"])
def test_bcrypt_of_older_data_fits_and_is_outdated(prefix: bytes) -> None:
    """`$2a$10$…` is verified as it was made: cut off at 72 bytes, not normalised."""
    hasher = Hasher(CHEAP)
    long = "ﬁve and seventy years " * 4
    stored = bcrypt.hashpw(long.encode()[:72], bcrypt.gensalt(4, b"2b")).replace(b"$2b$", b"$%s$" % prefix).decode()
    assert hasher.matches(stored, long, is_usable=True)
    assert not hasher.matches(stored, "five and seventy years " * 4, is_usable=True)
    assert not hasher.matches(stored, long, is_usable=False)
    assert hasher.is_outdated(stored)


def test_hash_of_another_cost_is_outdated() -> None:
    """When the cost is raised, what is stored is replaced at the next sign-in; what is as it should be is not."""
    stored = Hasher(CHEAP).hash(GOOD)
    assert not Hasher(CHEAP).is_outdated(stored)
    assert Hasher(Cost(2, 8, 1)).is_outdated(stored)
    assert Hasher(Cost(2, 8, 1)).matches(stored, GOOD, is_usable=True)


@pytest.mark.parametrize("stored", ["", "mine", "$argon2id$", "$argon2id$v=19$m=8,t=1,p=1$x$y", "$2a$10$short", "$2b$"])
def test_what_is_no_hash_fits_nothing(stored: str) -> None:
    """A damaged or made-up hash lets nobody in, and is no error."""
    for text in ("", "mine", GOOD, "a\0b"):
        assert not Hasher(CHEAP).matches(stored, text, is_usable=True)


def test_no_more_are_hashed_at_once_than_said() -> None:
    """A flood of sign-ins takes the memory of so many hashes and not of hundreds: the others wait."""
    hasher = Hasher(CHEAP, at_once=2)
    running, most = 0, 0
    lock = threading.Lock()
    verify = hasher._argon2.verify

    class Counting:
        def verify(self, stored: str, given: bytes) -> bool:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            try:
                return verify(stored, given)
            finally:
                with lock:
                    running -= 1

    hasher._argon2 = Counting()  # type: ignore[assignment]
    threads = [
        threading.Thread(target=hasher.matches, args=(None, GOOD), kwargs={"is_usable": True}) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most <= 2


@pytest.mark.parametrize(
    "stored",
    [
        "$argon2id$v=19$m=16777216,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$c29tZXNhbHRzb21lc2FsdA",
        "$argon2id$v=19$m=65536,t=100000,p=1$c29tZXNhbHRzb21lc2FsdA$c29tZXNhbHRzb21lc2FsdA",
        "$argon2id$v=19$m=8,t=4294967295,p=1$c29tZXNhbHRzb21lc2FsdA$c29tZXNhbHRzb21lc2FsdA",
        "$argon2i$v=19$m=65536,t=100000,p=1$c29tZXNhbHRzb21lc2FsdA$c29tZXNhbHRzb21lc2FsdA",
        "$2a$31$" + "a" * 53,
        "$2b$20$" + "a" * 53,
    ],
)
def test_hash_that_would_take_for_ever_is_nobodys(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for gigabytes or hours, stored by an app that is broken into, stops no other: it is not computed."""
    hasher = Hasher(CHEAP)
    checked: list[str] = []

    def look(hash_: str | bytes) -> bool:
        checked.append(hash_ if isinstance(hash_, str) else hash_.decode())
        return False

    monkeypatch.setattr(hasher, "_fits_argon2", lambda hash_, _given: look(hash_))
    monkeypatch.setattr(hasher, "_fits_bcrypt", lambda hash_, _given: look(hash_))
    assert not hasher.matches(stored, GOOD, is_usable=True)
    assert checked == [hasher._nobodys_argon2, hasher._nobodys_bcrypt.decode()]


def test_hash_that_costs_somewhat_more_is_checked() -> None:
    """Who lowers the cost, or has older data with a higher one, keeps their accounts."""
    assert Hasher(CHEAP).matches(Hasher(Cost(1, 131072, 1)).hash(GOOD), GOOD, is_usable=True)
    assert Hasher(CHEAP).matches(bcrypt.hashpw(GOOD.encode(), bcrypt.gensalt(11)).decode(), GOOD, is_usable=True)
