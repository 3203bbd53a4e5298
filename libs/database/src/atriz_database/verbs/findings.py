"""The verb that looks for trouble before it is deployed: check."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atriz_database import databases, head, label, requirements, roles, settlement
from atriz_database.errors import AtrizError, MigrationError, RevisionError, ServerError
from atriz_database.look import Look
from atriz_database.run import Options, ignore, locate, look_at, read
from atriz_database.settings import Target
from atriz_database.verbs.grants import database_names, managed
from atriz_database.workspace import Dependents, Package, Workspace

# squawk's opinions on style, and what is the runner's business and not a revision's.
_NOT_OURS = (
    "prefer-bigint-over-int",
    "prefer-bigint-over-smallint",
    "prefer-identity",
    "prefer-robust-stmts",  # a revision is one transaction: it is applied whole or not at all
    "prefer-text-field",
    "prefer-timestamptz",
    "require-lock-timeout",
    "require-statement-timeout",
    "require-timeout-settings",
)
_GRANT = "mend it with `atriz grant"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    package: str
    kind: str
    """``heads``, ``head file``, ``requires``, ``broken``, ``not at head``, ``edited``, ``deleted``, ``drift``,
    ``unsafe``, ``rights``, or ``not checked``."""
    subject: str
    """A file, a revision, or an object of the database."""
    text: str


def check(workspace: Workspace, name: str | None = None, options: Options = Options()) -> list[Finding]:
    """Return what is wrong with the revisions, where models and database differ, and what `grant` would change.

    Changes no database of a package.

    Where the role may create databases, what the models alone would make is made in one, compared, and dropped:
    autogenerate does not see a dropped CHECK.

    Raise `AtrizError` if the settings cannot be used or a database cannot be reached.
    """
    targets = locate(workspace, workspace.select(name), ignore)
    findings = []
    looks, failed = look_at(targets, options)
    by_name = {each.target.package.name: each for each in looks}
    for each in looks:
        if each.state == "unreachable" and each.error is not None:
            raise each.error
    for target in targets:
        package = target.package
        if package.name in failed and package.name not in by_name:
            findings.append(Finding(package.name, "heads", "", str(failed[package.name])))
            continue
        try:
            seen = by_name[package.name]
            findings += [*_static(workspace, package), *_in_database(seen), *_of_rights(workspace, targets, seen)]
        except (MigrationError, RevisionError) as error:
            findings.append(Finding(package.name, "broken", "", str(error)))
    return findings


def _static(workspace: Workspace, package: Package) -> Iterator[Finding]:
    files = read(package)
    try:
        files.single_head()
    except AtrizError as error:
        yield Finding(package.name, "heads", "", str(error))
    path = head.file_of(files.folder)
    if not path.exists() or path.read_text(encoding="utf-8") != head.text(files):
        text = (
            f"it should hold {head.text(files).strip()!r}; `python -m atriz_database.head` with any revision writes it"
        )
        yield Finding(package.name, "head file", package.shown(path), text)
    for revision in files.by_id.values():
        if mistake := requirements.mistaken(workspace, package, revision, read):
            yield Finding(package.name, "requires", revision.title, mistake)
    yield from _unsafe(package)


def _unsafe(package: Package) -> Iterator[Finding]:
    """Yield what squawk finds in the SQL of each revision, but for what a revision excuses with a reason."""
    from atriz_database import migrations

    squawk = shutil.which("squawk", path=str(Path(sys.executable).parent)) or shutil.which("squawk")
    if squawk is None:
        text = "squawk is not installed, so unsafe statements were not looked for: it comes with atriz-database[check]"
        yield Finding(package.name, "not checked", "", text)
        return
    for rendered in migrations.render(package, read(package).pending(())):
        excused = set(_NOT_OURS) | set(migrations.excuses(rendered.revision))
        done = subprocess.run(
            [squawk, "--reporter", "json", "--assume-in-transaction", "--stdin-filepath", rendered.revision.name],
            input=rendered.sql,
            capture_output=True,
            text=True,
        )
        try:
            violations = json.loads(done.stdout or "[]")
        except ValueError:
            raise MigrationError(f"squawk failed on {rendered.revision.path}: {done.stderr.strip()}") from None
        for violation in violations:
            if violation["rule_name"] in excused:
                continue
            line = rendered.sql.splitlines()[violation["line"]].strip()
            text = f"{violation['message']} {violation.get('help') or ''} ({violation['rule_name']}) in: {line}"
            yield Finding(package.name, "unsafe", rendered.revision.title, " ".join(text.split()))


def _in_database(seen: Look) -> Iterator[Finding]:
    from atriz_database import drift, migrations

    package = seen.target.package
    recorded: dict[str, str] = {}
    if seen.state != "missing":
        with databases.connect(seen.target, purpose="check") as connection:
            recorded = label.recorded(connection)
    # Of a database ahead of the files only the history knows what was applied.
    ahead = bool(seen.files.unknown(seen.current))
    applied = recorded.keys() if ahead else seen.files.ancestors(seen.current)
    for id_, checksum in recorded.items():
        if id_ not in seen.files.by_id:
            yield Finding(package.name, "deleted", id_, "it was applied, and its file is gone: restore it from git")
        elif id_ in applied and seen.files.by_id[id_].checksum() != checksum:
            text = f"edited after it was applied; `atriz repair {package.name}` shows how"
            yield Finding(package.name, "edited", seen.files.by_id[id_].title, text)
    if seen.state != "up-to-date":
        text = f"{seen.target.database} is {seen.state}, and only what is at head is compared with the models"
        yield Finding(package.name, "not at head", seen.target.database, text)
        return
    for difference in migrations.differences(migrations.Run(seen.target)):
        yield Finding(package.name, "drift", difference, "autogenerate would write it: models and database differ")
    metadata = migrations.metadata_of(package)
    try:
        for odd in drift.models(seen.target, migrations.load_metadata(metadata)):
            yield Finding(package.name, "drift", " ".join(odd.identity), str(odd))
    except ServerError as error:
        yield Finding(package.name, "not checked", "models", str(error))
    for path in migrations.unimported(metadata):
        text = "it defines models that are never imported: no revision will have their tables"
        yield Finding(package.name, "drift", package.shown(path), text)


def _of_rights(workspace: Workspace, targets: Sequence[Target], seen: Look) -> Iterator[Finding]:
    """Yield what `grant` would change in a database that it has given roles."""
    if seen.state in ("missing", "mislabelled"):
        return
    package = seen.target.package
    with databases.connect(seen.target, purpose="check") as connection:
        names = database_names(workspace, targets)
        dependents = [roles.of(names[each.name]).app for each in workspace.packages if package.name in each.requires]
        own = roles.in_use(connection, seen.target.database, has_dependents=package.dependents != Dependents())
        if own is None:
            return
        needs = [roles.of(names[name]).dependents for name in package.requires]
        there = roles.existing(connection, [*own.names, *dependents])
        steps = [
            *roles.settling(there, roles.wanted(own, in_production=seen.target.environment == "production")),
            *roles.joining(connection, own, there.keys() & set(dependents), needs, managed(names)),
        ]
        for step in steps:
            yield Finding(package.name, "rights", step.role, f"with `atriz grant {package.name}` it {step.text}")
        unknown, differences = settlement.differences(connection, own, package.dependents, managed(names))
        for subject, text in differences:
            yield Finding(package.name, "rights", subject, f"{text}; {_GRANT} {package.name}`")
        if seen.state == "up-to-date":
            for each in unknown:
                yield Finding(package.name, "rights", each, "the manifest grants it to dependents; there is none")
