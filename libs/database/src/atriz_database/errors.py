"""The errors a caller can meet, each with the exit status that the ``atriz`` command gives it.

The text of an error is the whole message a person reads: what failed, where it looked, what to do next. It never
holds a password.
"""

from __future__ import annotations

__all__ = [
    "AtrizError",
    "DatabaseClosedError",
    "DatabaseMissingError",
    "LabelError",
    "LockTimeoutError",
    "MigrationError",
    "OutcomeUnknownError",
    "PoolTimeoutError",
    "RevisionError",
    "SeedError",
    "ServerError",
    "ServerUnreachableError",
    "SettingsError",
    "TransactionError",
    "VerificationError",
    "WorkspaceError",
]


class AtrizError(Exception):
    """Base of every error this library raises on purpose."""

    status = 1
    """What the ``atriz`` command exits with: 1 it failed, 2 wrong usage or settings, 3 a check found something."""
    revision = ""
    """Id of the revision that was under way and failed, if one was."""


class WorkspaceError(AtrizError):
    """The manifests do not describe a workspace, or a package was named that is not in it."""

    status = 2


class SettingsError(AtrizError):
    """A setting is missing, malformed, or contradicts another one."""

    status = 2


class LabelError(AtrizError):
    """A database belongs to another package or another environment than the settings say."""

    status = 2


class ServerError(AtrizError):
    """The server refused: a wrong password, a missing right, a version that is too old."""


class ServerUnreachableError(ServerError):
    """No server answered where the settings say there is one."""


class DatabaseMissingError(ServerError):
    """The server is there, the database is not."""


class LockTimeoutError(AtrizError):
    """Another run held the lock of a database for longer than the caller would wait."""


class RevisionError(AtrizError):
    """The revision files are broken: they cannot be read, or do not form one line of history."""


class MigrationError(AtrizError):
    """A revision failed on the database."""


class SeedError(AtrizError):
    """A seed file is broken, or failed on the database."""


class VerificationError(AtrizError):
    """A revision cannot be applied, undone, and applied again as it should be."""

    status = 3


class DatabaseClosedError(AtrizError):
    """A `Database` was used after its `close()`."""


class PoolTimeoutError(AtrizError):
    """Every connection of the pool was in use for as long as the caller would wait."""


class TransactionError(AtrizError):
    """A transaction was used in a way that PostgreSQL would not carry out; it has been rolled back."""


class OutcomeUnknownError(AtrizError):
    """The connection broke while COMMIT was under way: the transaction is either committed as a whole or not at all."""
