"""Tokens: signed ones that an app checks by itself (JWT), and random ones of which only the hash is kept."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import GuestProtocol, OctKey

from atriz_core.errors import TokenError

if TYPE_CHECKING:
    from typing import Self

ALGORITHM = "HS256"
SHORTEST_SECRET = 32
"""Bytes that a secret has at least: as many as the hash (RFC 7518, 3.2)."""
SKEW_SECONDS = 60
"""How far ahead the clock of the app that issued a token may be. None is too late for a token that has expired."""
_LONGEST = 2048


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that sign access tokens, and what they say of whom they are from and for."""

    own: Mapping[str, OctKey] = field(repr=False)
    """By key id. The first signs, all verify: so keys can be changed while tokens are in use."""
    issuer: str = "atriz"
    audience: str = "atriz"
    """One for all apps, so that a token is good in each."""

    @classmethod
    def parse(cls, text: str, issuer: str = "atriz", audience: str = "atriz") -> Self:
        """Return the keys of ``id:secret[,id:secret]``.

        Raise `ValueError` if it has another form, an id twice, or a secret that is too short; it shows no secret.
        """
        found: dict[str, OctKey] = {}
        for number, part in enumerate(text.split(","), 1):
            name, colon, secret = part.strip().partition(":")
            if not colon or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"key {number} should be ID:SECRET, the id of letters, digits, - and _")
            if name in found:
                raise ValueError(f"the id {name} is there twice")
            if len(secret.encode()) < SHORTEST_SECRET:
                raise ValueError(f"the secret of {name} has fewer than {SHORTEST_SECRET} bytes")
            found[name] = OctKey.import_key(secret.encode())
        return cls(MappingProxyType(found), issuer, audience)


@dataclass(frozen=True, slots=True)
class Claims:
    """What an access token says, its signature checked."""

    user_id: UUID
    token_id: str


def new() -> str:
    """Return a new token that cannot be guessed: 256 random bits, in letters that a URL takes."""
    return secrets.token_urlsafe(32)


def hashed(token: str) -> str:
    """Return what is stored of a token. Without salt or cost: 256 random bits can be neither guessed nor listed."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def sign(keys: Keys, user_id: UUID, token_id: str, seconds: float) -> str:
    """Return an access token.

    :param token_id: its ``jti``, from :func:`new`.
    :param seconds: for how long it is good.
    """
    now = int(time.time())
    name, key = next(iter(keys.own.items()))
    claims = {
        "iss": keys.issuer,
        "aud": keys.audience,
        "sub": str(user_id),
        "jti": token_id,
        "iat": now,
        "exp": now + int(seconds),
    }
    return jws.serialize_compact(
        {"alg": ALGORITHM, "kid": name, "typ": "JWT"}, json.dumps(claims, separators=(",", ":")), key, [ALGORITHM]
    )


def verify(keys: Keys, token: str) -> Claims:
    """Return what an access token says, if it is signed by one of the keys and good now.

    Raise `TokenError` if it is not.
    """
    if len(token) > _LONGEST or not token.isascii():
        raise TokenError

    def key(signed: GuestProtocol) -> OctKey:
        # The id leads to a key of ours or to none; what else the header says of keys is not looked at.
        return keys.own[signed.headers()["kid"]]

    try:
        # The algorithm is ours to say, and never the token's.
        payload = jws.deserialize_compact(token.encode(), key, [ALGORITHM]).payload
        return _claims(keys, json.loads(payload))
    except (JoseError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        raise TokenError from None


def _claims(keys: Keys, claims: dict[str, Any]) -> Claims:
    """Return what is said, of what is signed: here, because the library takes as long for it as for the signature.

    Raise `TokenError`, `LookupError`, `TypeError` or `ValueError` if it is not good.
    """
    now = time.time()
    since, end, earliest = claims["iat"], claims["exp"], claims.get("nbf", 0)
    # Not a list of audiences, nor a text or infinity for a time. True is no number either.
    if claims["iss"] != keys.issuer or claims["aud"] != keys.audience:
        raise TokenError
    if not (type(since) is type(end) is type(earliest) is int):
        raise TokenError
    # At the end there is no leeway; a clock that is ahead is only so at the beginning.
    if end <= now or max(since, earliest) > now + SKEW_SECONDS:
        raise TokenError
    if not isinstance(claims["jti"], str) or not isinstance(claims["sub"], str):
        raise TokenError
    return Claims(UUID(claims["sub"]), claims["jti"])
