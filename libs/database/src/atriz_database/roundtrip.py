"""A package's history gone through in scratch databases: each revision up, down and up again, the catalogs compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from atriz_database import catalog, databases
from atriz_database.catalog import Catalog, Difference
from atriz_database.errors import MigrationError
from atriz_database.revisions import Revision, Revisions, irreversible
from atriz_database.scratch import scratch
from atriz_database.settings import Target

# An extension stays where a revision has brought it: what else has come to need it would go with it.
_TAKEN_BACK = catalog.KINDS - {"extension"}
_OF_TABLES = ("column", "constraint", "policy", "rule", "setting", "statistics", "trigger")


@dataclass(frozen=True, slots=True)
class Verified:
    """How one revision went up, down, and up again."""

    revision: Revision
    irreversible: str
    """Why it was not taken down, as it says itself; empty where it was."""
    findings: tuple[str, ...]
    """What is wrong with it; empty where nothing is."""
    seconds: float


def verify(target: Target, files: Revisions, tell: Callable[[Verified], None], *, wait: float = 0.0) -> int:
    """Take each revision up, down, and up again. Return how many were not reached: those above one that can't go up.

    The catalog after the way down must be the one before the way up, and after the second way up the one after the
    first. Behind a revision with findings it goes on in a new scratch database, so that each stands for itself. The
    target's own database isn't touched, and need not be there. One call per process at a time, as
    :func:`migrations.upgrade`.

    :param files: the package's history.
    :param tell: gets each revision once it has been tried.
    :param wait: for how many seconds to try again while the server is down.

    Raise what :func:`scratch` raises, `RevisionError` if a reason is missing, and `MigrationError` if the files can't
    be loaded.
    """
    order = [files.by_id[id_] for id_ in files.pending(())]
    done, goes_up = 0, True
    while done < len(order) and goes_up:
        with scratch(target, wait=wait) as empty:
            done, goes_up = _walk(empty, order, done, tell)
    return len(order) - done


def _walk(empty: Target, order: Sequence[Revision], done: int, tell: Callable[[Verified], None]) -> tuple[int, bool]:
    """Apply the revisions that are done, and try the others up to one with findings.

    Return how many are done now, and whether the last of them can be applied.
    """
    from atriz_database import migrations

    started, under_way = 0.0, ""

    def step(direction: str) -> Iterator[tuple[str, bool]]:
        nonlocal under_way
        under_way = direction
        yield order[done].id, direction != "down"
        under_way = ""

    def finish(reason: str = "", findings: Sequence[str] = ()) -> None:
        nonlocal done
        done += 1
        tell(Verified(order[done - 1], reason, tuple(findings), time.perf_counter() - started))

    def steps(looking: databases.Connection) -> Iterator[tuple[str, bool]]:
        nonlocal started
        for revision in order[:done]:
            yield revision.id, True
        before = catalog.read(looking)
        for revision in order[done:]:
            started = time.perf_counter()
            yield from step("up")
            applied = catalog.read(looking)
            findings: list[str] = []
            reason = irreversible(revision)
            if not reason:
                yield from step("down")
                findings = _described("after up, down", before, catalog.read(looking), _TAKEN_BACK)
            if not reason and not findings:
                yield from step("up again")
                findings = _described("after up, down, up", applied, catalog.read(looking))
            finish(reason, findings)
            if findings:
                return
            before = applied

    try:
        with databases.connect(empty, purpose="verify") as looking:
            migrations.step_through(migrations.Run(empty), steps(looking))
    except MigrationError as error:
        if not under_way:
            raise
        finish(findings=[f"{under_way}: {error}"])
        return done, under_way != "up"
    return done, True


def _described(when: str, wanted: Catalog, found: Catalog, kinds: frozenset[str] = catalog.KINDS) -> list[str]:
    """Return what `found` has otherwise than `wanted`, a text each: ``after up, down: index ix is there and was not``.

    What a table or another object brings or takes along is not told of beside it.
    """
    differences = catalog.compare(wanted, found, kinds)
    whole = {str(each.identity) for each in differences if each.left is None or each.right is None}
    return [f"{when}: {_text(each)}" for each in differences if not _belongs(each, whole)]


def _belongs(difference: Difference, whole: set[str]) -> bool:
    """Whether an object that is there or is gone belongs to another that is so as well."""
    kind, name = difference.identity
    if kind in ("comment", "grant"):
        return name.partition(" to ")[0] in whole or name in whole
    owner = name.rpartition(".")[0]
    if kind == "view":  # A column of one.
        return f"view {owner}" in whole
    return kind in _OF_TABLES and any(f"{of} {each}" in whole for of in ("table", "view") for each in (name, owner))


def _text(difference: Difference) -> str:
    identity, left, right = difference.identity, difference.left, difference.right
    if left is None:
        return f"{identity} is there and was not"
    if right is None:
        return f"{identity} is gone and was there: {' '.join(left.split())}"
    if "\n" in left + right:
        return "\n    ".join([f"{identity} is another", *difference.diff("before", "now").splitlines()])
    return f"{identity} is {right} and was {left}"
