"""Which access tokens were shown, gathered and written together: with each request it would cost more than that."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from atriz_database import Database
from atriz_database.errors import AtrizError

_EVERY_SECONDS = 60.0
_MOST = 1000
_log = logging.getLogger("atriz_core")


class Shown:
    """Writes when tokens were last shown, a minute late at most while others are shown, for all threads.

    :param database: where they are written.
    :param every: seconds from one time to the next.
    """

    def __init__(self, database: Database, every: float = _EVERY_SECONDS) -> None:
        self._database = database
        self._every = every
        self._lock = threading.Lock()
        self._hashes: set[str] = set()
        self._due = time.monotonic() + every

    def add(self, token_hash: str) -> None:
        """Note that a token was shown, and write all that were if it is time."""
        with self._lock:
            self._hashes.add(token_hash)
            is_due = time.monotonic() >= self._due or len(self._hashes) >= _MOST
        if is_due:
            self.write()

    def write(self) -> None:
        """Write what was gathered. What cannot be written is logged: nobody's request is to fail for it."""
        with self._lock:
            hashes, self._hashes = self._hashes, set()
            self._due = time.monotonic() + self._every
        if not hashes:
            return
        try:
            self._database.query("SELECT auth.shown(:hashes)", hashes=sorted(hashes))
        except (SQLAlchemyError, AtrizError) as error:
            _log.warning("when %d access tokens were last shown is not kept: %s", len(hashes), type(error).__name__)
