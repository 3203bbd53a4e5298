"""The revision files of a package, read without Alembic: their ids, their order, their heads.

Only what can be read for certain is read here. A file whose ids are not plain literals, or a history with
``depends_on``, raises :exc:`Undecided`, and the caller asks Alembic, which stays the authority.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from atriz_database import index
from atriz_database.errors import MigrationError, RevisionError

_NAMES = ("revision", "down_revision", "depends_on", "branch_labels")
_ASSIGNED = re.compile(rb"\b(?:%s)\b[^\n=]*=" % "|".join(_NAMES).encode())
_FIRST_DEFINITION = re.compile(rb"^(?:async\s+def\b|def\b|class\b|@)", re.MULTILINE)
# What Alembic loads from a versions folder: alembic.script.base, _only_source_rev_file.
_FILE = re.compile(r"(?!\.#|__init__)(.*\.py)$")


class Undecided(Exception):  # noqa: N818 -- not an error: it says that Alembic has to be asked
    """The files cannot be read for certain without running them."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision file."""

    id: str
    down: tuple[str, ...]
    """Ids of the revisions it stands on; empty for the first."""
    file: str
    """Where the file is: text, because to make a `Path` of each of hundreds takes as long as to look at them."""

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(self.file)

    @property
    def name(self) -> str:
        """The file's name."""
        return os.path.basename(self.file)  # noqa: PTH119

    @property
    def title(self) -> str:
        """The file's name without its ending, by which people know it."""
        return os.path.splitext(self.name)[0]  # noqa: PTH122

    def source(self) -> str:
        """Return the text of the file, and of the SQL file beside it; line ends do not count."""
        text = _text(self.file)
        beside = f"{self.file.removesuffix('.py')}.sql"
        return f"{text}\n{_text(beside)}" if os.path.exists(beside) else text  # noqa: PTH110 -- for hundreds, quickly

    def checksum(self) -> str:
        """Return the SHA-256 of :meth:`source`."""
        return digest(self.source())


def _text(path: str) -> str:
    # As bytes, which takes half the time of a file that is text.
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        text = file.read().decode(errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def digest(source: str) -> str:
    """Return the SHA-256 of a revision's text."""
    return hashlib.sha256(source.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Revisions:
    """The history that a package's files describe."""

    folder: Path
    by_id: Mapping[str, Revision]
    heads: tuple[str, ...]
    is_plain: bool = True
    """Whether this is all that Alembic knows of them: no ``depends_on``, no branch labels."""

    def single_head(self) -> str | None:
        """Return the one head, `None` where there are no revisions.

        Raise `RevisionError` if there are several; the message says how to mend it.
        """
        if len(self.heads) > 1:
            files = " and ".join(self.by_id[head].name for head in self.heads)
            first, *later = sorted(self.heads, key=lambda head: self.by_id[head].name)
            last = later[-1]
            begin = self._begin_of_branch(last, self.ancestors([first]))
            raise RevisionError(
                f"{self.folder} has {len(self.heads)} heads: {files}. Two branches each added a revision. Put one "
                f'after the other: in {self.by_id[begin].name} set down_revision = "{first}".'
            )
        return self.heads[0] if self.heads else None

    def ancestors(self, ids: Iterable[str]) -> set[str]:
        """Return the revisions with these ids and all they stand on."""
        found: set[str] = set()
        waiting = list(ids)
        while waiting:
            id_ = waiting.pop()
            if id_ not in found:
                found.add(id_)
                waiting.extend(self.by_id[id_].down)
        return found

    def tips(self, ids: Collection[str]) -> tuple[str, ...]:
        """Return those of the ids that none of the others stands on, in the order of their files."""
        below = {down for id_ in ids for down in self.by_id[id_].down}
        return tuple(sorted(set(ids) - below, key=lambda id_: self.by_id[id_].name))

    def unknown(self, current: Iterable[str]) -> tuple[str, ...]:
        """Return those of the ids that no file here has."""
        return tuple(id_ for id_ in current if id_ not in self.by_id)

    def pending(self, current: Collection[str]) -> tuple[str, ...]:
        """Return the ids that a database at `current` lacks, oldest first."""
        missing = set(self.by_id) - self.ancestors(current)
        order: list[str] = []
        waiting = sorted(missing, key=lambda id_: self.by_id[id_].name, reverse=True)
        placed: set[str] = set()
        while waiting:
            id_ = waiting.pop()
            before = [down for down in self.by_id[id_].down if down in missing and down not in placed]
            if id_ in placed:
                continue
            if before:
                waiting += [id_, *before]
                continue
            placed.add(id_)
            order.append(id_)
        return tuple(order)

    def _begin_of_branch(self, head: str, other: set[str]) -> str:
        while True:
            below = [down for down in self.by_id[head].down if down not in other]
            if not below:
                return head
            head = below[0]


def read(folder: Path) -> Revisions:
    """Return the history described by the revision files in `folder`; what has not changed is not parsed again.

    Raise `RevisionError` if a file has a syntax error, two have one id, or one stands on an id that no file has;
    raise `Undecided` if the answer takes running them.
    """
    now = time.time_ns()
    before, known = index.load(folder), {}
    for entry in _entries(folder):
        seen, name = before.get(entry.name), entry.name
        if entry.is_symlink():
            # Alembic takes what a link leads to by the name that it has there.
            there = Path(os.path.realpath(entry.path)).name
            if there != name and (_FILE.match(there) or _FILE.match(name)):
                raise Undecided(folder / name)
        if not _FILE.match(name):
            continue
        stamp = _stamp(entry)
        if seen is not None and seen[0] == stamp:
            known[name] = seen
        else:
            known[name] = (stamp, _header(folder / name, _bytes(folder / name)))
    if known != before:
        index.save(folder, known, now)
    return arrange(folder, (Revision(id_, down, f"{folder}{os.sep}{name}") for name, (_, (id_, down)) in known.items()))


def files(folder: Path) -> Iterator[Path]:
    """Yield the files in `folder` that Alembic takes for revisions, in alphabetical order."""
    for entry in _entries(folder):
        if _FILE.match(entry.name):
            yield folder / entry.name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if _FILE.match(entry.name) or entry.is_symlink()]
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        raise RevisionError(f"{folder} is missing. A package with a database keeps its revisions there.") from None


def arrange(folder: Path, revisions: Iterable[Revision]) -> Revisions:
    """Return the history that `revisions` form, checked to be one.

    Raise `RevisionError` if two have one id, one stands on an id that none has, or they run in a circle.
    """
    by_id: dict[str, Revision] = {}
    for revision in revisions:
        other = by_id.setdefault(revision.id, revision)
        if other is not revision:
            raise RevisionError(
                f"{other.name} and {revision.name} in {folder} both have revision {revision.id!r}. Give one "
                "of them another id, if it has not been applied anywhere."
            )
    for revision in by_id.values():
        for down in revision.down:
            if down not in by_id:
                raise RevisionError(
                    f"{revision.path} has down_revision {down!r}, but no file in {folder} has that id. A file is "
                    f"missing (was it deleted, or not committed?), or the id is mistyped."
                )
    try:
        TopologicalSorter({id_: revision.down for id_, revision in by_id.items()}).prepare()
    except CycleError as error:
        circle = " -> ".join(by_id[id_].name for id_ in reversed(error.args[1]))
        raise RevisionError(
            f"The revisions in {folder} run in a circle: {circle}. Each has the next as its down_revision; correct "
            "the one that is wrong."
        ) from None
    history = Revisions(folder, by_id, ())
    return replace(history, heads=history.tips(by_id))


def _stamp(entry: os.DirEntry[str]) -> index.Stamp:
    try:
        # Of the file behind a link: the link's own times say nothing of it.
        return index.stamp(entry.stat())
    except OSError as error:
        raise _unreadable(Path(entry.path), error) from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> RevisionError:
    return RevisionError(f"{path} cannot be read: {error.strerror}.")


def _header(path: Path, text: bytes) -> index.Header:
    values = _assignments(path, text)
    if values.get("depends_on") or values.get("branch_labels"):
        raise Undecided(path)
    for name in ("revision", "down_revision"):
        if name not in values:
            raise RevisionError(f'{path} has no line {name} = "…". Add one, or move the file out of the folder.')
    id_, down = values["revision"], values["down_revision"]
    downs = () if down is None else down if isinstance(down, tuple | list) else (down,)
    ids = [each for each in (id_, *downs) if isinstance(each, str) and each]
    if len(ids) != 1 + len(downs):
        raise Undecided(path)
    return ids[0], tuple(ids[1:])


def _assignments(path: Path, text: bytes) -> dict[str, object]:
    """Return the ids that a file assigns, parsing no more of it than the lines before its first definition."""
    end = _FIRST_DEFINITION.search(text)
    if end and not _ASSIGNED.search(text, end.start()):
        try:
            return _assigned(ast.parse(text[: end.start()]), path)
        except (SyntaxError, ValueError):
            pass  # The cut fell into a docstring; the whole file says whether there is an error.
    try:
        return _assigned(ast.parse(text), path)
    except SyntaxError as error:
        raise syntax_error(path, error) from None
    except ValueError as error:
        raise RevisionError(f"{path} cannot be read as Python: {error}.") from None


def check_syntax(path: Path) -> None:
    """Raise `RevisionError` if Python cannot parse the file; :func:`read` looks no further than it must."""
    try:
        ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise syntax_error(path, error) from None
    except ValueError as error:
        raise RevisionError(f"{path} cannot be read as Python: {error}.") from None


def literal(path: Path, name: str) -> object | None:
    """Return what a revision file assigns to `name`, read without running it; `None` where it assigns nothing.

    Raise `RevisionError` if it is computed, or Python cannot parse the file.
    """
    text = path.read_bytes()
    if name.encode() not in text:
        return None
    check_syntax(path)
    for statement in ast.parse(text).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                return ast.literal_eval(statement.value)  # type: ignore[attr-defined, no-any-return]
            except (ValueError, TypeError):
                raise RevisionError(f"{path}: {name} is read without running the file. Write its value out.") from None
    return None


def irreversible(revision: Revision) -> str:
    """Return why a revision cannot be undone, as it says itself: ``irreversible = "reason"``; else nothing.

    Raise `RevisionError` if the reason is missing.
    """
    reason = literal(revision.path, "irreversible")
    if reason is None:
        return ""
    if not isinstance(reason, str) or not reason.strip():
        raise RevisionError(f'{revision.path} needs a reason why it cannot be undone: irreversible = "reason".')
    return " ".join(reason.split()).rstrip(".")


def check_reversible(undone: Iterable[Revision]) -> None:
    """Raise `MigrationError` if one of the revisions that are to be undone cannot be; the message says why."""
    for revision in undone:
        if reason := irreversible(revision):
            raise MigrationError(
                f"{revision.title} ({revision.id}) cannot be undone: {reason}. Nothing was undone. Go back no further "
                f"than {revision.id}, write a new revision that mends it, or restore a backup."
            )


def syntax_error(path: Path, error: SyntaxError) -> RevisionError:
    """Return the error to raise for a revision file that Python cannot parse, with the line and a caret."""
    if not error.text:  # There is no line to show where the whole file is no text, or of an unknown encoding.
        return RevisionError(f"{path} cannot be read as Python: {error.msg}.")
    line = error.text.rstrip("\n")
    caret = " " * max((error.offset or 1) - 1, 0) + "^"
    return RevisionError(f"{path}, line {error.lineno}: {error.msg}\n    {line}\n    {caret}")


def _assigned(tree: ast.Module, path: Path) -> dict[str, object]:
    values: dict[str, object] = {}
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name) and target.id in _NAMES]
        if not names:
            if _binds(statement):
                raise Undecided(path)
            continue
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            raise Undecided(path)
        try:
            value = ast.literal_eval(statement.value)
        except (ValueError, TypeError):
            raise Undecided(path) from None
        values.update(dict.fromkeys(names, value))
    return values


def _binds(statement: ast.stmt) -> bool:
    """Whether a statement that is no plain assignment may give a name its value: a tuple, an if, an import."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    return any(
        (isinstance(node, ast.Name) and node.id in _NAMES and not isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.alias) and (node.asname or node.name) in _NAMES)
        for node in ast.walk(statement)
    )
