"""Tokens: signed ones that an app checks by itself (JWT), and random ones of which only the hash is kept."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID

import jwt

from atriz_core.errors import TokenError

if TYPE_CHECKING:
    from typing import Self

ALGORITHM = "HS256"
SHORTEST_SECRET = 32
"""Bytes that a secret has at least: as many as the hash (RFC 7518, 3.2)."""
SKEW_SECONDS = 60
"""How far ahead the clock of the app that issued a token may be. None is too late for a token that has expired."""
_CLAIMS = ("exp", "iat", "iss", "aud", "sub", "jti")
_LONGEST = 2048


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that sign access tokens, and what they say of whom they are from and for."""

    secrets: Mapping[str, bytes] = field(repr=False)
    """By key id. The first signs, all verify: so keys can be changed while tokens are in use."""
    issuer: str = "atriz"
    audience: str = "atriz"
    """One for all apps, so that a token is good in each."""

    @classmethod
    def parse(cls, text: str, issuer: str = "atriz", audience: str = "atriz") -> Self:
        """Return the keys of ``id:secret[,id:secret]``.

        Raise `ValueError` if it has another form, an id twice, or a secret that is too short; it shows no secret.
        """
        found: dict[str, bytes] = {}
        for number, part in enumerate(text.split(","), 1):
            name, colon, secret = part.strip().partition(":")
            if not colon or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"key {number} should be ID:SECRET, the id of letters, digits, - and _")
            if name in found:
                raise ValueError(f"the id {name} is there twice")
            if len(secret.encode()) < SHORTEST_SECRET:
                raise ValueError(f"the secret of {name} has fewer than {SHORTEST_SECRET} bytes")
            found[name] = secret.encode()
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
    name, secret = next(iter(keys.secrets.items()))
    claims = {
        "iss": keys.issuer,
        "aud": keys.audience,
        "sub": str(user_id),
        "jti": token_id,
        "iat": now,
        "exp": now + int(seconds),
    }
    return jwt.encode(claims, secret, ALGORITHM, headers={"kid": name})


def verify(keys: Keys, token: str) -> Claims:
    """Return what an access token says, if it is signed by one of the keys and good now.

    Raise `TokenError` if it is not.
    """
    if len(token) > _LONGEST or not token.isascii():
        raise TokenError
    secret = keys.secrets.get(_key_id(token.partition(".")[0]))
    if secret is None:
        raise TokenError
    try:
        # The algorithm is ours to say, and never the token's.
        claims: dict[str, Any] = jwt.decode(
            token,
            secret,
            [ALGORITHM],
            {"require": list(_CLAIMS), "strict_aud": True, "verify_iat": False},
            audience=keys.audience,
            issuer=keys.issuer,
        )
        # Its leeway would hold for the end as well.
        if claims["iat"] > time.time() + SKEW_SECONDS:
            raise TokenError
        return Claims(UUID(claims["sub"]), claims["jti"])
    except (jwt.PyJWTError, ValueError, TypeError):
        raise TokenError from None


@lru_cache(maxsize=64)
def _key_id(header: str) -> str:
    """Return the key id in a token's header; a key has the same header in every token, so it is read once."""
    try:
        name = jwt.get_unverified_header(f"{header}.e30.")["kid"]
    except (jwt.PyJWTError, KeyError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""
