"""What a revision needs of another package's database: ``requires = {"core": "<revision>"}``.

No foreign key spans databases; what a revision counts on in another one is said by it, and looked for before it runs.
"""

from __future__ import annotations

from collections.abc import Callable

from atriz_database import databases, label, revisions, server, settings, workspace
from atriz_database.errors import MigrationError, RevisionError
from atriz_database.revisions import Revision, Revisions
from atriz_database.settings import Target
from atriz_database.workspace import Package, Workspace


def of(revision: Revision) -> dict[str, str]:
    """Return what a revision requires: for each package the id of a revision. Nothing where it says nothing.

    Raise `RevisionError` if it is written in another form.
    """
    found = revisions.literal(revision.path, "requires")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(each, str) for pair in found.items() for each in pair):
        raise RevisionError(f'{revision.path}: requires is written as {{"package": "revision"}}.')
    return found


def check(target: Target, revision: Revision, files_of: Callable[[Package], Revisions]) -> None:
    """Refuse to go on to a revision before the databases it requires are as far as it says.

    :param target: the database that the revision is for.
    :param files_of: gives a package's history.

    Raise `MigrationError` if one of them is not, `RevisionError` if the requirement makes no sense, and what
    :func:`databases.connect` raises.
    """
    space = workspace.load(target.package.folder)
    for name, id_ in of(revision).items():
        package = _package(space, revision, name)
        files = files_of(package)
        _known(files, revision, name, id_)
        (other,) = settings.resolve(space, [package])
        if other.url is None:
            other = other.at(server.of(space.root).url)
        with databases.connect(other, purpose="require") as connection:
            label.check(other, label.read(connection))
            current = label.versions(connection)
        if id_ not in files.ancestors(set(current) & files.by_id.keys()):
            raise MigrationError(
                f"{revision.title} of {target.package.name} requires revision {id_} of {name}, and {other.database} is "
                f"at {', '.join(current) or 'no revision'}. Migrate it first: atriz migrate {name}"
            )


def mistaken(space: Workspace, package: Package, revision: Revision, files_of: Callable[[Package], Revisions]) -> str:
    """Return what is wrong with what a revision requires, as far as the files tell; nothing if they agree."""
    try:
        for name, id_ in of(revision).items():
            other = _package(space, revision, name)
            if name not in package.requires:
                return f"it requires {name}, which {package.name} does not depend on: add it to its dependencies"
            _known(files_of(other), revision, name, id_)
    except RevisionError as error:
        return str(error)
    return ""


def _package(space: Workspace, revision: Revision, name: str) -> Package:
    found = {package.name: package for package in space.packages}.get(name)
    if found is None:
        raise RevisionError(f"{revision.path} requires {name}, and there is no such package with a database.")
    return found


def _known(files: Revisions, revision: Revision, name: str, id_: str) -> None:
    if id_ not in files.by_id:
        raise RevisionError(f"{revision.path} requires revision {id_} of {name}, and no file in {files.folder} has it.")
