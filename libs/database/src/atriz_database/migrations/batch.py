"""Statements that go to the server as one string, and which of them it was that failed."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import FrameType

import psycopg
from psycopg.pq.abc import PGresult

_BETWEEN = ";\n"
_QUICK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, or rows to be written, of a revision."""

    sql: str
    place: str = ""
    """The file and the line that it comes from, for a message."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Statements in the order they run."""

    statements: tuple[Statement, ...]

    @property
    def sql(self) -> str:
        """The string that is sent. Each statement begins a line, so that a line of it belongs to one of them."""
        return _BETWEEN.join(each.sql for each in self.statements)

    def failed(self, answers: int, error: psycopg.Error) -> Statement | None:
        """Return the statement that failed, with the text that the position in the server's message counts in.

        :param answers: how many were answered before it, each being a single statement as far as it has a place.

        `None` where the error is not of a statement that came from a file::

            >>> batch = Batch((Statement("BEGIN"), Statement("CREATE TABLE a ()", "a.py, line 3"), Statement("COMMIT")))
            >>> batch.failed(1, psycopg.Error()).place
            'a.py, line 3'
            >>> batch.failed(2, psycopg.Error())
        """
        position = error.diag.statement_position
        # What cannot be parsed is told before any of them runs.
        found = self._holding(int(position)) if position else self.statements[min(answers, len(self.statements) - 1)]
        if not found.place:
            return None
        return Statement(self.sql, found.place) if position else found

    def _holding(self, position: int) -> Statement:
        """Return the statement that holds the character at `position`, counted from 1."""
        end = 0
        for each in self.statements:
            end += len(each.sql) + len(_BETWEEN)
            if position <= end:
                break
        return each


Transaction = tuple[Statement, ...]
"""A revision's, from BEGIN to COMMIT; without BEGIN where it is under way."""


@dataclass(slots=True)
class Sent:
    """Revisions that went to the server in one string."""

    revisions: tuple[Transaction, ...]
    batch: Batch
    answers: list[PGresult] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)
    is_unwanted: bool = False
    """Whether the run was interrupted since: the server is to end what it has not done, which nobody sends again."""

    @property
    def committed(self) -> list[PGresult]:
        """The answers to what is committed."""
        ends = [number for number, each in enumerate(self.answers, 1) if each.command_status == b"COMMIT"]
        return self.answers[: ends[-1]] if ends else []

    @property
    def was_quick(self) -> bool:
        """Whether each of them took so little time that it is no loss to hear of some at once."""
        return time.perf_counter() - self.since <= _QUICK_SECONDS * len(self.revisions)

    @property
    def is_unread(self) -> bool:
        """Whether none of them was begun, where the server refused the string: the fault may be of any one's text."""
        return len(self.revisions) > 1 and not self.answers and not self.is_unwanted


def place_in(file: str) -> str:
    """Return the line of a revision's file that is being run, for a message; nothing where none is."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == file:
            return f"{file}, line {frame.f_lineno}"
        frame = frame.f_back
    return file
