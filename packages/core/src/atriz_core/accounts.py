"""Accounts: register, sign in, stay signed in, sign out, and get back in. What apps do with people's accounts.

All that touches the database is a function in its schema ``auth``; see the migrations. Each call is one transaction, or
two. Do not call these inside a ``transaction()`` of the same `Database`: what a failed attempt leaves behind (that it
is counted, that a stolen token ends its family) would be rolled back with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID, uuid4

from sqlalchemy.exc import StatementError

from atriz_core import addresses, passwords, settings, throttle, tokens
from atriz_core.errors import InputError, MailTokenError, OldPasswordError, SignInError, ThrottledError, TokenError
from atriz_core.mail import ConsoleMail, Mail, Message
from atriz_core.passwords import Cost, Hasher
from atriz_core.shown import Shown
from atriz_core.tokens import Keys
from atriz_database import Database
from atriz_database.errors import SettingsError

if TYPE_CHECKING:
    from typing import Self, Unpack

    from atriz_database.engine import PoolOptions

P = ParamSpec("P")
T = TypeVar("T")
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be chosen about accounts; the defaults are meant to be kept."""

    shortest_password: int = 15
    """Characters of a new password: 15 where it is all that stands before an account, as here; NIST SP 800-63B-4 lets
    8 do where there is a second factor."""
    blocked_passwords: Collection[str] = frozenset()
    """Passwords to refuse beside the common ones, in lower case."""
    access_seconds: float = 15 * 60.0
    """For how long an access token is good; an hour at most, to which the database sees, as to the others."""
    session_seconds: float = 30 * 86400.0
    """After how long one has to sign in again, however often the tokens were refreshed; 30 days at most."""
    verification_seconds: float = 86400.0
    """For how long a mail to verify an address is good; 7 days at most."""
    reset_seconds: float = 3600.0
    """For how long a mail to set a new password is good; a day at most."""
    cost: Cost = field(default_factory=Cost)
    """What a hash of a password costs."""
    hashes_at_once: int | None = None
    """How many passwords are hashed at the same time in a process; as many as there are cores where not given."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a client gets when it signs in, or refreshes."""

    access: str = field(repr=False)
    """To show with each request."""
    refresh: str = field(repr=False)
    """To be exchanged, once, for new ones."""
    expires_in: float
    """Seconds for which the access token is good."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is signed in, as of now."""

    user_id: UUID
    email: str
    name: str
    roles: tuple[str, ...]
    """Names of roles, in order."""
    token_id: str = field(repr=False)

    def has_role(self, role: str) -> bool:
        """Return whether the user has a role, by its name."""
        return role in self.roles


def _admitted(method: Callable[Concatenate[Accounts, P], T]) -> Callable[Concatenate[Accounts, P], T]:
    """Have a method that hashes refuse, before it begins, whom it would have wait too long."""

    @wraps(method)
    def admitted(self: Accounts, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._hasher.admitted():
            return method(self, *args, **kwargs)

    return admitted


class Accounts:
    """The accounts of the shared database, for all threads of a program.

    :param database: the shared database; its role needs no more than what `atriz grant` gives an app.
    :param keys: what access tokens are signed and verified with; the same in all apps.
    :param mail: sends what has to be sent.
    :param policy: lengths and durations.

    ``address`` of the methods is the client's, without a port; attempts are counted by it as well. It must not be taken
    from a header that the client can write.
    """

    def __init__(self, database: Database, keys: Keys, mail: Mail, policy: Policy = Policy()) -> None:
        self.database = database
        self.policy = policy
        self._keys = keys
        self._mail = mail
        self._hasher = Hasher(policy.cost, at_once=policy.hashes_at_once)
        self._shown = Shown(database)

    @classmethod
    def from_environment(
        cls, package: str = "core", mail: Mail | None = None, policy: Policy = Policy(), **pool: Unpack[PoolOptions]
    ) -> Self:
        """Return the accounts of the database and with the keys that the settings name; close it at the end.

        :param package: the app's name, its folder's: where its ``.env`` has a SHARED_DATABASE_URL, as `atriz env
            --write` gives it one with the app's role, that goes before core's own.
        :param mail: sends mail; outside of production the console where not given.
        :param pool: the settings of the pool, as `Database` takes them.

        Raise `SettingsError` if keys are missing in production, or nothing sends mail there, and what
        `Database.from_environment` raises.
        """
        faults: list[str] = []
        keys = database = None
        with settings.noting(faults):
            keys = settings.keys(package=package)
        if mail is None and settings.is_production(package=package):
            faults.append(
                "Nothing sends mail, and APP_ENV is production: serve a factory of your own that gives the app "
                f'Accounts.from_environment("{package}", mail=…). docs/signin.md has one, under "In production".'
            )
        with settings.noting(faults):
            url = settings.shared_url(package)
            if url is None:
                database = Database.from_environment("core", variable=settings.VARIABLE, **pool)
            else:
                database = Database(url, name="core", production=settings.is_production(package=package), **pool)
        if faults or keys is None or database is None:
            if database is not None:
                database.close()
            # All at once: who mends one would meet the next.
            raise SettingsError("\n".join(faults))
        return cls(database, keys, mail or ConsoleMail(), policy)

    def ping(self) -> None:
        """Ask the database whether people can sign in: it answers, and has the functions that this takes.

        Raise SQLAlchemy's errors, and what `Database.query` raises.
        """
        # A hash that no token has.
        self._ask("SELECT FROM auth.identity('')")

    @_admitted
    def register(self, email: str, password: str, name: str, address: str | None = None) -> None:
        """Make an account, which can be signed in to once its owner has shown that the address is theirs.

        Where there is one already nothing changes, and the caller learns nothing of it: its owner gets a mail in either
        case. So whoever gives somebody else's address gets nothing, and does not hear whether it is known.

        Raise `InputError` if something cannot be taken, and `ThrottledError` if there were too many.
        """
        email = addresses.normalised(email)
        name = normalised_name(name)
        self._refuse_password(password, email, name)
        throttle.count_mail(self.database, email, address)
        password_hash = self._hasher.hash(password)
        verification, reset = tokens.new(), tokens.new()
        (row,) = self._ask(
            "SELECT * FROM auth.register(:email, :password_hash, :name, :verification, :verification_seconds, :reset,"
            " :reset_seconds)",
            email=email,
            password_hash=password_hash,
            name=name,
            verification=tokens.hashed(verification),
            verification_seconds=self.policy.verification_seconds,
            reset=tokens.hashed(reset),
            reset_seconds=self.policy.reset_seconds,
        )
        if row.is_new:
            self._mail.send(Message("verify", email, row.known_name, verification))
        else:
            self._mail.send(Message("taken", email, row.known_name, reset))

    @_admitted
    def sign_in(self, email: str, password: str, address: str | None = None) -> Tokens:
        """Return tokens for whoever knows the password.

        An address that is unknown, a wrong password and an account that may not be used are one answer, after the same
        time.

        Raise `SignInError` if it cannot be, and `ThrottledError` if there were too many attempts.
        """
        email, seen = self._checked(email, password, address)
        new_hash = self._hasher.hash(password) if self._hasher.is_outdated(seen.password_hash) else None
        token_id, refresh = tokens.new(), tokens.new()
        ((is_signed_in,),) = self._ask(
            "SELECT auth.sign_in(:email, :source, :seen_hash, :new_hash, :family, :access, :access_seconds, :refresh,"
            " :refresh_seconds)",
            email=email,
            source=throttle.source(address),
            seen_hash=seen.password_hash,
            new_hash=new_hash,
            family=uuid4(),
            access=tokens.hashed(token_id),
            access_seconds=self.policy.access_seconds,
            refresh=tokens.hashed(refresh),
            refresh_seconds=self.policy.session_seconds,
        )
        if not is_signed_in:
            raise SignInError
        return self._tokens(seen.user_id, token_id, refresh)

    def refresh(self, refresh_token: str) -> Tokens:
        """Return new tokens for a refresh token, which is good for once.

        One that was used before has been stolen from somebody: everything of its sign-in is revoked, and they have to
        sign in again. There is no time of grace. Of two that come at once one wins, and the other ends the sign-in: a
        client that refreshes from several places does so under a lock.

        Raise `TokenError` if it is not good.
        """
        token_id, refresh = tokens.new(), tokens.new()
        (row,) = self._ask(
            "SELECT * FROM auth.refresh(:old, :access, :access_seconds, :new)",
            old=tokens.hashed(refresh_token),
            access=tokens.hashed(token_id),
            access_seconds=self.policy.access_seconds,
            new=tokens.hashed(refresh),
        )
        if row.outcome != "refreshed":
            raise TokenError
        return self._tokens(row.user_id, token_id, refresh)

    def check(self, access_token: str) -> Identity:
        """Return who shows an access token, with the roles they have now.

        The signature first, without the database; then one look whether the token is revoked and the user active.

        Raise `TokenError` if it is not good.
        """
        claims = tokens.verify(self._keys, access_token)
        token_hash = tokens.hashed(claims.token_id)
        rows = self._ask("SELECT * FROM auth.identity(:hash)", hash=token_hash)
        if not rows or rows[0].user_id != claims.user_id:
            raise TokenError
        self._shown.add(token_hash)
        user_id, email, name, roles = rows[0]
        return Identity(user_id, email, name, tuple(roles), claims.token_id)

    def sign_out(self, access_token: str) -> None:
        """Revoke all tokens of the sign-in that an access token comes from, in every app at once.

        Raise `TokenError` if it is not good.
        """
        claims = tokens.verify(self._keys, access_token)
        ((is_signed_out,),) = self._ask("SELECT auth.sign_out(:hash)", hash=tokens.hashed(claims.token_id))
        if not is_signed_out:
            raise TokenError

    def sign_out_everywhere(self, user_id: UUID) -> None:
        """Revoke all tokens of a user, in every app at once. Nobody of that id is fine."""
        self._ask("SELECT auth.sign_out_everywhere(:user_id)", user_id=user_id)

    def verify_email(self, token: str) -> None:
        """Spend a token that came by mail: the address is shown to be theirs, and they can sign in.

        Raise `MailTokenError` if it is not good, or was spent.
        """
        ((is_verified,),) = self._ask("SELECT auth.verify_email(:hash)", hash=tokens.hashed(token))
        if not is_verified:
            raise MailTokenError

    def request_password_reset(self, email: str, address: str | None = None) -> None:
        """Send a mail to set a new password with, if somebody has an account of that address.

        The caller hears nothing of it; but it takes longer if so, by as much as `Mail.send` does. Call it where whoever
        asks does not wait, as the web router does.

        Raise `InputError` if it is no address, and `ThrottledError` if there were too many.
        """
        email = addresses.normalised(email)
        throttle.count_mail(self.database, email, address)
        token = tokens.new()
        ((name,),) = self._ask(
            "SELECT auth.begin_reset(:email, :hash, :seconds)",
            email=email,
            hash=tokens.hashed(token),
            seconds=self.policy.reset_seconds,
        )
        if name is not None:
            self._mail.send(Message("reset", email, name, token))

    @_admitted
    def reset_password(self, token: str, password: str, address: str | None = None) -> None:
        """Spend a token that came by mail on a new password; the user is signed out everywhere.

        Raise `MailTokenError` if it is not good, or was spent, and `InputError` if the password cannot be taken, in
        which case the token is still good.
        """
        token_hash = tokens.hashed(token)
        # A look first: who guesses tokens costs us no hash of a password.
        owners = self._ask("SELECT * FROM auth.reset_owner(:hash)", hash=token_hash)
        if not owners:
            raise MailTokenError
        email, name = owners[0]
        self._refuse_password(password, email, name)
        ((is_set,),) = self._ask(
            "SELECT auth.reset_password(:hash, :password_hash, :source)",
            hash=token_hash,
            password_hash=self._hasher.hash(password),
            source=throttle.source(address),
        )
        if not is_set:
            raise MailTokenError
        self._mail.send(Message("changed", email, name))

    @_admitted
    def change_password(self, email: str, old: str, new: str, address: str | None = None) -> None:
        """Set a new password for whoever knows the old one; the user is signed out everywhere, here as well.

        :param email: the address of the account, as in `Identity`. The old password is tried as in a sign-in.

        Raise `OldPasswordError` if the old password is not right, `ThrottledError` if there were too many attempts, and
        `InputError` if the new one cannot be taken.
        """
        self._refuse_password(new, email, "")
        try:
            email, seen = self._checked(email, old, address)
        except SignInError:
            raise OldPasswordError from None
        ((is_set,),) = self._ask(
            "SELECT auth.change_password(:email, :source, :seen_hash, :new_hash)",
            email=email,
            source=throttle.source(address),
            seen_hash=seen.password_hash,
            new_hash=self._hasher.hash(new),
        )
        if not is_set:
            raise OldPasswordError
        self._mail.send(Message("changed", email, seen.name))

    def close(self) -> None:
        """Close the database, once what is to be kept of tokens is written."""
        self._shown.write()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, statement: str, **values: object) -> Sequence[Any]:
        """Return the rows of a statement; where it fails the error shows no values, which are hashes and addresses."""
        try:
            return self.database.query(statement, **values)
        except Exception as error:
            seen: BaseException | None = error
            while seen is not None:
                if isinstance(seen, StatementError):
                    seen.hide_parameters = True
                seen = seen.__cause__ or seen.__context__
            raise

    def _checked(self, email: str, password: str, address: str | None) -> tuple[str, _Seen]:
        """Return what a password was checked against, and found right.

        Raise `SignInError` or `ThrottledError` if it is not so.
        """
        try:
            email = addresses.normalised(email)
        except InputError:
            # Nobody can have it, which whoever asks knew before: no need to take the time of a hash.
            raise SignInError from None
        (row,) = self._ask(
            "SELECT * FROM auth.credentials(:email, :source)", email=email, source=throttle.source(address)
        )
        if row.wait > 0:
            raise ThrottledError(row.wait)
        if not self._hasher.matches(row.password_hash, password, is_usable=bool(row.is_usable)):
            raise SignInError
        return email, _Seen(row.user_id, row.password_hash, row.name)

    def _tokens(self, user_id: UUID, token_id: str, refresh: str) -> Tokens:
        seconds = self.policy.access_seconds
        return Tokens(tokens.sign(self._keys, user_id, token_id, seconds), refresh, seconds)

    def _refuse_password(self, password: str, email: str, name: str) -> None:
        policy = self.policy
        passwords.refuse(password, policy.shortest_password, policy.blocked_passwords, (email, name))


@dataclass(frozen=True, slots=True)
class _Seen:
    user_id: UUID
    password_hash: str = field(repr=False)
    name: str


def normalised_name(name: str) -> str:
    """Return a name as it is stored, without white space around it.

    Raise `InputError` if it is empty, too long, or has characters that cannot be seen.
    """
    text = name.strip()
    if not text or len(text) > _LONGEST_NAME or not text.isprintable():
        raise InputError("name", f"The name should be 1 to {_LONGEST_NAME} characters that can be seen.")
    return text
