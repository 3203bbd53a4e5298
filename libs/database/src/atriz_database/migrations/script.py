"""SQL scripts, read as far as it takes to see that one would begin or end a transaction, before any of it runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Cheap, and true of hardly any revision: only then are its statements told apart.
_SUSPECT = re.compile(r"\b(?:BEGIN|START|COMMIT|END|ABORT|PREPARE|ROLLBACK)\b", re.IGNORECASE)
# As PostgreSQL's own lexer has them. Comments nest, which takes a look at how deep one is.
_TOKEN = re.compile(
    r"""
    --[^\n]*
    | (?P<comment> /\* )
    | (?P<dollar> \$ (?:[^\W\d]\w*)? \$ )
    | \bE'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | (?P<word> [^\W\d][\w$]* )
    | (?P<mark> [();] )
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_COMMENT_MARK = re.compile(r"/\*|\*/")
_FIRST_WORDS = 4
_KEEPS = {("ROLLBACK", "TO"), ("ROLLBACK", "WORK", "TO"), ("ROLLBACK", "TRANSACTION", "TO")}
_ALONE = {"BEGIN", "COMMIT", "END", "ABORT", "ROLLBACK"}
_PAIRS = {("START", "TRANSACTION"), ("PREPARE", "TRANSACTION")}


def transaction_statement(script: str) -> str:
    """Return the first words of the statement that would begin or end a transaction; nothing where none would.

    What stands in strings, comments and bodies of functions is not a statement, and savepoints may come and go::

        >>> transaction_statement("CREATE TABLE a (b int); commit")
        'COMMIT'
        >>> transaction_statement("DO $$ BEGIN COMMIT; END $$; ROLLBACK TO a")
        ''
    """
    if _SUSPECT.search(script) is None:
        return ""
    for words in _statements(script):
        if words[:2] in _PAIRS:
            return " ".join(words[:2])
        if words[:1] and words[0] in _ALONE and words[:2] not in _KEEPS and words[:3] not in _KEEPS:
            return words[0]
    return ""


def _statements(script: str) -> Iterator[tuple[str, ...]]:
    """Yield the first words of each statement, in capitals."""
    words: list[str] = []
    parentheses = blocks = 0
    previous = ""
    for word in _tokens(script):
        if word == ";" and not parentheses and not blocks:
            yield tuple(words)
            words, previous = [], ""
            continue
        if word in "()":
            # A rule's actions are several statements within parentheses.
            parentheses = max(parentheses + (1 if word == "(" else -1), 0)
        elif word != ";":
            if len(words) < _FIRST_WORDS:
                words.append(word)
            # The body of a function in SQL: BEGIN ATOMIC …; END. A CASE within it has an END of its own.
            if (word == "ATOMIC" and previous == "BEGIN" and words[0] == "CREATE") or (word == "CASE" and blocks):
                blocks += 1
            elif word == "END" and blocks:
                blocks -= 1
        previous = word
    yield tuple(words)


def _tokens(script: str) -> Iterator[str]:
    """Yield the words, in capitals, the parentheses and the semicolons that are no part of a string or comment."""
    at = 0
    while found := _TOKEN.search(script, at):
        at = found.end()
        if found["comment"]:
            at = _end_of_comment(script, at)
        elif found["dollar"]:
            closing = script.find(found["dollar"], at)
            at = len(script) if closing < 0 else closing + len(found["dollar"])
        elif word := found["word"] or found["mark"]:
            yield word.upper()


def _end_of_comment(script: str, at: int) -> int:
    depth = 1
    while depth:
        found = _COMMENT_MARK.search(script, at)
        if found is None:
            return len(script)
        depth += 1 if found[0] == "/*" else -1
        at = found.end()
    return at
