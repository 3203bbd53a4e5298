"""What may go wrong with an account. The text is what a person reads; none holds a password or a token."""

from __future__ import annotations

from atriz_database.errors import AtrizError

__all__ = [
    "AccountError",
    "InputError",
    "MailTokenError",
    "OldPasswordError",
    "SignInError",
    "ThrottledError",
    "TokenError",
    "UserError",
]


class AccountError(AtrizError):
    """Base of every error of this package."""


class SignInError(AccountError):
    """Nobody was signed in. Why, is told to nobody: each reason would help whoever guesses."""

    def __init__(
        self, text: str = "The e-mail address or the password is not right, or the account cannot be used."
    ) -> None:
        super().__init__(text)


class OldPasswordError(SignInError):
    """Somebody who is signed in, and wants a new password, does not know the old one."""

    def __init__(self) -> None:
        super().__init__("The old password is not right.")


class TokenError(AccountError):
    """A token is not good: forged, expired, used before, revoked, or its user is no longer active."""

    def __init__(self, text: str = "The token is not valid, or no longer. Sign in again.") -> None:
        super().__init__(text)


class MailTokenError(TokenError):
    """A token that came by mail is not good: nothing that signing in would mend."""

    def __init__(self) -> None:
        super().__init__("The token is not valid, or no longer. Ask for a new mail.")


class ThrottledError(AccountError):
    """There were too many attempts, and there may be none for some time; known accounts and unknown ones alike."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"There were too many attempts. Try again in {round(max(seconds, 1))} s.")
        self.seconds = seconds
        """For how long there may be no other."""


class InputError(AccountError):
    """What somebody gave cannot be taken; the text says what is asked for."""

    status = 2

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field
        """``email``, ``password`` or ``name``."""


class UserError(AccountError):
    """Administration of a user who is not there, or is there already, or of a role that is not."""
