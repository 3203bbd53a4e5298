"""The graph of packages, for people, for diagrams and for CI."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atriz_database.workspace import Member, Workspace


@dataclass(frozen=True, slots=True)
class Node:
    """One member of the workspace."""

    name: str
    folder: str
    """Its folder, from the workspace's."""
    database: str | None
    requires: tuple[str, ...]
    """Names of the members it depends on directly."""


def graph(workspace: Workspace) -> list[Node]:
    """Return the members in order, what others need first."""
    names = {member.distribution: member.name for member in workspace.members}
    return [
        Node(
            member.name,
            member.folder.relative_to(workspace.root).as_posix(),
            member.table["name"] if member.table else None,
            tuple(names[each] for each in member.dependencies),
        )
        for member in workspace.members
    ]


def mermaid(nodes: Sequence[Node]) -> str:
    """Return the nodes as a Mermaid diagram, an arrow from each to what it depends on."""
    lines = ["graph TD"]
    for node in nodes:
        database = f"<br>{node.database}" if node.database else ""
        lines.append(f'    {node.name}["{node.name}{database}"]')
    known = {node.name for node in nodes}
    lines += [f"    {node.name} --> {need}" for node in nodes for need in node.requires if need in known]
    return "\n".join(lines)


def affected(workspace: Workspace, base: str) -> tuple[list[Node], str]:
    """Return the members that changed since `base` with all that depends on them, and why it is all, if it is.

    A file that belongs to no member (the lock, the noxfile) touches every one. Where git cannot tell, as on a shallow
    clone without `base`, every member counts as affected, and the reason says so.

    :param base: any git revision; compared from where the present state branched off it.
    """
    nodes = graph(workspace)
    changed, reason = _changed_files(workspace.root, base)
    if reason:
        return nodes, f"{reason}; every package counts as affected"
    touched: set[str] = set()
    for path in changed:
        owner = _owner(workspace, path)
        if owner is None:
            if path.suffix == ".md" or path.parts[0] == "docs":
                continue  # Prose outside the packages changes nothing they do.
            return nodes, f"{path} belongs to no package; every package counts as affected"
        touched.add(owner.name)
    for node in nodes:  # In order, so that one pass carries a change to all that stands on it.
        if touched.intersection(node.requires):
            touched.add(node.name)
    return [node for node in nodes if node.name in touched], ""


def _owner(workspace: Workspace, path: Path) -> Member | None:
    whole = workspace.root / path
    return next((member for member in workspace.members if member.folder in whole.parents), None)


def _changed_files(root: Path, base: str) -> tuple[list[Path], str]:
    """Return the files that differ from `base`, uncommitted and untracked ones too, and why they can't be known."""
    names: list[str] = []
    if base.startswith("-"):
        return [], f"git cannot compare with {base} (an option and no revision)"
    for command in (
        # First, for outside a repository `diff` is another command and speaks of its options.
        ["ls-files", "--others", "--exclude-standard", "-z"],
        # Where this state left `base`, so that what `base` got since is nobody's change here. A file that moved
        # counts where it was and where it is.
        ["diff", "--name-only", "--no-renames", "-z", "--relative", "--merge-base", base, "--"],
    ):
        try:
            done = subprocess.run(["git", *command], cwd=root, capture_output=True)
        except FileNotFoundError:
            return [], "git is not installed"
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            return [], f"git cannot compare with {base} ({lines[0] if lines else 'no reason given'})"
        names += [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    return [Path(name) for name in names], ""
