"""The packages of this repository and the order between them, read from their manifests and listed nowhere else."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from atriz_database.errors import WorkspaceError


@dataclass(frozen=True, slots=True)
class Dependents:
    """What the applications of a package's dependents may do in its database, beside connecting to it."""

    functions: tuple[str, ...] = ()
    """Functions they may call: ``auth.sign_in``, or ``auth.*`` for all of a schema."""
    select: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Tables, and the columns they may read of each; the one column ``*`` is the whole table."""


@dataclass(frozen=True, slots=True)
class Package:
    """One member of the workspace that owns a database."""

    name: str
    """The folder's name, by which commands call it: ``mextrack``."""
    folder: Path
    root: Path
    """The workspace's folder."""
    database: str
    """The database's name unless a URL says another: ``mextrack_db``."""
    variable: str
    """The variable that holds the database's URL: ``DATABASE_URL``."""
    schemas: tuple[str, ...]
    """The schemas that are the package's own, ``public`` unless the manifest says otherwise."""
    requires: tuple[str, ...]
    """Names of the packages with a database that this one depends on, directly or through others."""
    dependents: Dependents = Dependents()
    """What those who depend on this one may do in its database: nothing, unless the manifest says otherwise."""

    @property
    def prefix(self) -> str:
        """What stands before a variable's name to mean this package's: ``MEXTRACK``."""
        return prefix(self.name)

    def shown(self, path: Path) -> str:
        """Return a path as messages show it: from the workspace's folder, where it lies below it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def prefix(name: str) -> str:
    """Return what stands before a variable's name to mean that of the package called `name`."""
    return re.sub(r"\W", "_", name.upper())


@dataclass(frozen=True)
class Member:
    """One folder of the workspace with a manifest, database or not."""

    name: str
    distribution: str
    folder: Path
    dependencies: tuple[str, ...]
    """Distributions of this workspace it depends on."""
    table: dict[str, Any] | None
    """``[tool.atriz.database]``, where it owns one."""


@dataclass(frozen=True)
class Workspace:
    """Members in the order in which they depend on one another: what others need comes first."""

    root: Path
    members: tuple[Member, ...]

    @cached_property
    def packages(self) -> tuple[Package, ...]:
        """The members that own a database, in order."""
        owners = {member.distribution: member for member in self.members}
        requires: dict[str, tuple[str, ...]] = {}
        found = []
        for member in self.members:
            needed = [owners[name] for name in member.dependencies]
            names = dict.fromkeys(
                name
                for other in needed
                for name in (*requires[other.name], *((other.name,) if other.table is not None else ()))
            )
            requires[member.name] = tuple(names)
            if member.table is not None:
                found.append(
                    Package(
                        member.name,
                        member.folder,
                        self.root,
                        member.table["name"],
                        member.table["url"],
                        tuple(member.table.get("schemas", ("public",))),
                        requires[member.name],
                        dependents(member.table, member.folder / "pyproject.toml"),
                    )
                )
        return tuple(found)

    def package(self, name: str) -> Package:
        """Return the package called `name`.

        Raise `WorkspaceError` if there is none; the message names the nearest.
        """
        for package in self.packages:
            if package.name == name:
                return package
        names = [package.name for package in self.packages]
        near = difflib.get_close_matches(name, names, n=1)
        did_you_mean = f" Did you mean {near[0]}?" if near else ""
        raise WorkspaceError(f"There is no package {name!r}.{did_you_mean} The packages here are: {', '.join(names)}.")

    def select(self, name: str | None, *, dependencies: bool = False) -> tuple[Package, ...]:
        """Return the packages of a run in order: all of them, or the one called `name`.

        :param dependencies: whether what the package depends on belongs to the run.

        Raise `WorkspaceError` if there is no such package, or none at all.
        """
        if not self.packages:
            raise WorkspaceError(
                f"No member of the workspace in {self.root} owns a database. A package owns one when its "
                "pyproject.toml has a table [tool.atriz.database] with name and url."
            )
        if name is None:
            return self.packages
        package = self.package(name)
        wanted = {package.name, *(package.requires if dependencies else ())}
        return tuple(package for package in self.packages if package.name in wanted)


def load(start: Path) -> Workspace:
    """Return the workspace that `start` lies in.

    :param start: the workspace's folder, or any folder below it.

    Raise `WorkspaceError` if there is none, a manifest is broken, or the manifests depend on one another in a circle.
    """
    root = find_root(start)
    members = _read_members(root)
    distributions = {member.distribution for member in members}
    graph = {member.distribution: [name for name in member.dependencies if name in distributions] for member in members}
    try:
        order = tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle: Sequence[str] = error.args[1]
        raise WorkspaceError(
            f"The manifests depend on one another in a circle: {' -> '.join(reversed(circle))}. "
            "Take one of them out of the other's [project] dependencies."
        ) from None
    by_distribution = {
        member.distribution: Member(
            member.name, member.distribution, member.folder, tuple(graph[member.distribution]), member.table
        )
        for member in members
    }
    return Workspace(root, tuple(by_distribution[name] for name in order))


def find_root(start: Path) -> Path:
    """Return the nearest folder from `start` upwards whose ``pyproject.toml`` has ``[tool.uv.workspace]``.

    Raise `WorkspaceError` if there is none.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        manifest = folder / "pyproject.toml"
        if manifest.is_file() and "workspace" in _table(_read(manifest), manifest, "tool", "uv"):
            return folder
    raise WorkspaceError(
        f"No workspace found from {start} upwards: no pyproject.toml there has a table [tool.uv.workspace]. "
        "Run the command inside the repository, or give its folder with --root."
    )


def _read_members(root: Path) -> list[Member]:
    manifest = root / "pyproject.toml"
    workspace = _table(_read(manifest), manifest, "tool", "uv", "workspace")
    try:
        found, excluded = (
            {path for pattern in _texts(workspace, key, manifest) for path in root.glob(pattern)}
            for key in ("members", "exclude")
        )
        # A folder without a manifest is what a sparse checkout leaves of a package, not a member.
        folders = [folder for folder in sorted(found - excluded) if (folder / "pyproject.toml").is_file()]
    except (OSError, ValueError, NotImplementedError) as error:
        raise WorkspaceError(f"The members that {manifest} names cannot be found: {error}.") from None
    members = [_member(folder) for folder in folders]
    for attribute in ("name", "distribution"):
        seen: dict[str, Path] = {}
        for member in members:
            key = getattr(member, attribute)
            if key in seen:
                raise WorkspaceError(
                    f"{seen[key]} and {member.folder} have the same {attribute}, {key!r}. Rename one of them."
                )
            seen[key] = member.folder
    return members


def _member(folder: Path) -> Member:
    manifest = folder / "pyproject.toml"
    content = _read(manifest)
    project = _table(content, manifest, "project")
    if not isinstance(project.get("name"), str):
        raise WorkspaceError(f"{manifest} has no name in [project]. Give it one.")
    owner = _table(content, manifest, "tool", "atriz")
    table = _table(owner, manifest, "database") if "database" in owner else None
    if table is not None:
        _texts(table, "schemas", manifest)
        dependents(table, manifest)
        for key in ("name", "url"):
            if not isinstance(table.get(key), str) or not table[key]:
                raise WorkspaceError(
                    f"{manifest} has a table [tool.atriz.database] without {key!r}. It needs name (the database's "
                    "name) and url (the variable that holds its URL)."
                )
    return Member(
        folder.name,
        _normalized(project["name"]),
        folder,
        tuple(_distributions(_texts(project, "dependencies", manifest))),
        table,
    )


def dependents(table: dict[str, Any], manifest: Path) -> Dependents:
    """Return what ``[tool.atriz.database.dependents]`` says, from the table it stands in.

    Raise `WorkspaceError` if it says something else than `Dependents` can hold.
    """
    own = _table(table, manifest, "dependents")
    if strange := sorted(own.keys() - {"functions", "select"}):
        raise WorkspaceError(
            f"{manifest} has {strange[0]!r} in [tool.atriz.database.dependents], which takes functions and select."
        )
    select = _table(own, manifest, "select")
    columns = {name: tuple(_texts(select, name, manifest)) for name in select}
    if empty := [name for name, named in columns.items() if not named]:
        raise WorkspaceError(f'{manifest} lets dependents read no column of {empty[0]}. Name some, or say ["*"].')
    return Dependents(tuple(_texts(own, "functions", manifest)), tuple(columns.items()))


def _distributions(requirements: Iterable[str]) -> Iterable[str]:
    for requirement in requirements:
        # The name ends where PEP 508 lets an extra, a version, a marker or a URL begin.
        end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), len(requirement))
        yield _normalized(requirement[:end])


def _normalized(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _table(content: dict[str, Any], manifest: Path, *keys: str) -> dict[str, Any]:
    """Return a table of a manifest, empty where it has none."""
    for key in keys:
        content = content.get(key, {})
        if not isinstance(content, dict):
            raise WorkspaceError(f"{manifest} has {key} = …, and it should be a table in brackets, as in [tool.uv].")
    return content


def _texts(table: dict[str, Any], key: str, manifest: Path) -> list[str]:
    """Return a list of texts in a table of a manifest, empty where it has none."""
    texts = table.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise WorkspaceError(f"{manifest} has {key} = …, and it should be a list of texts in quotes.")
    return texts


def _read(manifest: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WorkspaceError(f"{manifest} cannot be read: {error}") from None
