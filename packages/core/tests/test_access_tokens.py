"""Attacks on access tokens that need no database: what is not signed by us, for us and for now is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atriz_core import tokens
from atriz_core.errors import TokenError
from atriz_core.tokens import Keys

SECRET = "s" * 32
KEYS = Keys.parse(f"now:{SECRET},old:{'o' * 40}")
USER = UUID("3d21f9ee-d85e-5a10-bda2-dff7da80567a")


def claims(**changed: Any) -> dict[str, Any]:
    """Return good claims, but for those that are changed; `None` leaves one out."""
    now = int(time.time())
    good = {"iss": "atriz", "aud": "atriz", "sub": str(USER), "jti": "j", "iat": now, "exp": now + 60}
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def signed(header: dict[str, Any], payload: Any, secret: bytes = SECRET.encode(), digest: str = "sha256") -> str:
    """Return a token made by hand: libraries refuse to make some of these."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).decode().rstrip("=")

    text = f"{part(json.dumps(header).encode())}.{part(json.dumps(payload).encode())}"
    return f"{text}.{part(hmac.digest(secret, text.encode(), digest))}"


def refused(token: str, keys: Keys = KEYS) -> bool:
    """Return whether a token is refused, in the one way."""
    try:
        tokens.verify(keys, token)
    except TokenError:
        return True
    return False


def test_own_token_is_good() -> None:
    """What was signed says who it is, by the first key and with its id in the header; the hand-made one equals it."""
    token = tokens.sign(KEYS, USER, "j", 60)
    assert tokens.verify(KEYS, token) == tokens.Claims(USER, "j")
    assert json.loads(base64.urlsafe_b64decode(token.partition(".")[0] + "==")) == {
        "alg": "HS256",
        "kid": "now",
        "typ": "JWT",
    }
    assert not refused(signed({"alg": "HS256", "kid": "now"}, claims()))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
def test_unsigned_token_is_refused(algorithm: str) -> None:
    """`none` in any spelling is no algorithm, with a signature or without."""
    token = signed({"alg": algorithm, "kid": "now"}, claims())
    assert refused(token)
    assert refused(token.rpartition(".")[0] + ".")
    assert refused(token.rpartition(".")[0])


@pytest.mark.parametrize(("algorithm", "digest"), [("HS384", "sha384"), ("HS512", "sha512"), ("RS256", "sha256")])
def test_algorithm_is_ours_to_say(algorithm: str, digest: str) -> None:
    """A token that is signed with the right key, but says another algorithm, is refused: confusion has no way in."""
    assert refused(signed({"alg": algorithm, "kid": "now"}, claims(), digest=digest))


def test_key_in_the_token_is_not_believed() -> None:
    """A key, or the address of one, that comes with the token is not used."""
    own = {"kty": "oct", "k": base64.urlsafe_b64encode(b"e" * 32).decode()}
    for header in ({"jwk": own}, {"jku": "http://localhost/keys"}, {"x5u": "http://localhost/"}, {"crit": ["exp"]}):
        assert refused(signed({"alg": "HS256", "kid": "now", **header}, claims(), b"e" * 32))


@pytest.mark.parametrize("kid", [None, "", "new", "../../dev/null", "now' OR '1'='1", 7, ["now"], {"now": 1}])
def test_unknown_key_id_is_refused(kid: object) -> None:
    """Only an id that is in the settings leads to a key, whatever its type."""
    assert refused(signed({"alg": "HS256", "kid": kid}, claims()))
    assert refused(signed({"alg": "HS256", "kid": kid}, claims(), b""))
    assert refused(signed({"alg": "HS256"}, claims()))


def test_key_of_another_id_does_not_verify() -> None:
    """The key that verifies is the one that the id says, and not any of them."""
    assert refused(signed({"alg": "HS256", "kid": "old"}, claims()))


def test_keys_are_changed_while_tokens_are_in_use() -> None:
    """A new key signs, the old one verifies until it is taken away; then its tokens are refused."""
    token = tokens.sign(Keys.parse(f"old:{'o' * 40}"), USER, "j", 60)
    assert not refused(token)
    assert refused(token, Keys.parse(f"now:{SECRET}"))


@pytest.mark.parametrize("audience", [None, "", "other", "ATRIZ", ["atriz"], ["atriz", "other"], {"atriz": 1}])
def test_wrong_audience_is_refused(audience: object) -> None:
    """A token for somebody else, or for several, or for nobody, is not for us."""
    assert refused(signed({"alg": "HS256", "kid": "now"}, claims(aud=audience)))


@pytest.mark.parametrize("issuer", [None, "", "other", "atriz ", ["atriz"]])
def test_wrong_issuer_is_refused(issuer: object) -> None:
    """A token from somebody else who has the key is refused."""
    assert refused(signed({"alg": "HS256", "kid": "now"}, claims(iss=issuer)))


@pytest.mark.parametrize("seconds", [0, 1, 3600])
def test_expired_token_is_refused_to_the_second(seconds: int) -> None:
    """There is no leeway at the end: expired by one second is expired."""
    assert refused(signed({"alg": "HS256", "kid": "now"}, claims(exp=int(time.time()) - seconds)))


@pytest.mark.parametrize("end", [None, "soon", "", [], 1e400, 4e9, float("nan"), -1, True])
def test_token_without_an_end_is_refused(end: object) -> None:
    """No end, or one that is no number, is not for ever."""
    assert refused(signed({"alg": "HS256", "kid": "now"}, claims(exp=end)))


def test_clock_of_another_app_may_be_a_little_ahead() -> None:
    """A token of an app whose clock is half a minute ahead is good; one from further in the future is not."""
    now = int(time.time())
    assert not refused(signed({"alg": "HS256", "kid": "now"}, claims(iat=now + 30)))
    assert refused(signed({"alg": "HS256", "kid": "now"}, claims(iat=now + 3600, exp=now + 7200)))


def test_token_that_is_not_good_yet_is_refused() -> None:
    """A claim that we do not make, and that says no, is heard."""
    assert refused(signed({"alg": "HS256", "kid": "now"}, claims(nbf=int(time.time()) + 600)))


@pytest.mark.parametrize("name", ["iat", "sub", "jti"])
@pytest.mark.parametrize("value", [None, "", 7, [], "x' OR 1=1"])
def test_claims_are_there_and_of_their_type(name: str, value: object) -> None:
    """Who, which and since when have to be there; a number is no user, and a text no time."""
    is_good = (name == "iat" and value == 7) or (name == "jti" and isinstance(value, str))
    assert refused(signed({"alg": "HS256", "kid": "now"}, claims(**{name: value}))) is not is_good


@pytest.mark.parametrize("payload", [None, [], ["iss"], "iss", 7, {}])
def test_payload_is_an_object(payload: object) -> None:
    """What is signed and no set of claims says nothing."""
    assert refused(signed({"alg": "HS256", "kid": "now"}, payload))


def test_changed_token_is_refused() -> None:
    """Whatever single character is changed, the token is no longer one."""
    token = tokens.sign(KEYS, USER, "j", 60)
    for place in range(0, len(token) - 1, 7):
        other = "A" if token[place] != "A" else "B"
        assert refused(token[:place] + other + token[place + 1 :]), place


@pytest.mark.parametrize(
    "token", ["", ".", "..", "...", "a.b.c", "é.b.c", "\ud800.b.c", "a" * 100_000, "e30.e30.", "null.null.null"]
)
def test_rubbish_is_refused(token: str) -> None:
    """What is no token at all is refused in the same way, however long."""
    assert refused(token)


def test_deep_header_is_refused() -> None:
    """A header that nests a thousand times is refused before it overflows anything."""
    deep = base64.urlsafe_b64encode(b"[" * 1400).decode().rstrip("=")
    assert refused(f"{deep}.e30.x")


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_is_refused_as_a_token(first: str, second: str) -> None:
    """No text makes anything but a refusal."""
    assert refused(first)
    assert refused(f"{first}.{second}.{second}")


@pytest.mark.parametrize(
    "text",
    ["", "now", "now:", f"now:{'s' * 31}", f":{SECRET}", f"a b:{SECRET}", f"a:{SECRET},a:{SECRET}", f"a:{SECRET},"],
)
def test_bad_keys_are_refused_without_showing_them(text: str) -> None:
    """A secret that is too short, an id twice or none: refused, and nothing of a secret is in the message."""
    with pytest.raises(ValueError, match=r"key \d|the id|the secret") as caught:
        Keys.parse(text)
    assert "sss" not in str(caught.value)
    assert "sss" not in repr(KEYS)


def test_random_tokens_are_long_and_stored_as_hashes() -> None:
    """256 bits in letters that a URL takes, never the same, and stored as their SHA-256."""
    made = {tokens.new() for _ in range(100)}
    assert len(made) == 100
    assert all(len(base64.urlsafe_b64decode(token + "=")) == 32 for token in made)
    token = made.pop()
    assert tokens.hashed(token) == hashlib.sha256(token.encode()).hexdigest()
    assert tokens.hashed("\ud800")  # whatever a client sends has a hash
    assert str(uuid4()) not in token
