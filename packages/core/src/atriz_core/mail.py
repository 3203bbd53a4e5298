"""Mail that is to be sent: what it is about. How it reads and how it goes out is the application's."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Literal, Protocol, TextIO

Kind = Literal["verify", "taken", "reset", "changed"]

_TEXTS: dict[Kind, str] = {
    "verify": "Show that this address is yours with the token below. If you have not registered, do nothing.",
    "taken": "Somebody, perhaps you, has registered with this address, which has an account already. With the token "
    "below you can set a new password. If it was not you, do nothing.",
    "reset": "With the token below you can set a new password. If you have not asked for it, do nothing.",
    "changed": "Your password has been changed, and you are signed out everywhere. If it was not you, ask for another.",
}


@dataclass(frozen=True, slots=True)
class Message:
    """A mail to one person."""

    kind: Kind
    """``verify`` to whoever has registered; ``taken`` where the address had an account already; ``reset`` to whoever
    has forgotten the password; ``changed`` after it was set."""
    email: str
    name: str
    token: str = field(default="", repr=False)
    """To `verify_email` with in ``verify``, to `reset_password` with in ``taken`` and ``reset``."""

    @property
    def text(self) -> str:
        """A plain text, for where no better one is written."""
        return "\n\n".join(filter(None, (f"Dear {self.name},", _TEXTS[self.kind], self.token)))


class Mail(Protocol):
    """Sends mail."""

    def send(self, message: Message) -> None:
        """Send a message, or leave it to something that does. Whoever asked for it waits meanwhile."""


class ConsoleMail:
    """Writes mail to stderr, for development.

    :param stream: where to write it instead.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def send(self, message: Message) -> None:
        """Write the message."""
        stream = self._stream or sys.stderr
        stream.write(f"--- mail to {message.email} ({message.kind})\n{message.text}\n---\n")
        stream.flush()
