"""What the packages may import of one another follows from their manifests, whichever packages there are."""

from __future__ import annotations

import tomllib
from pathlib import Path

import grimp
import pytest

from atriz_database import workspace
from atriz_database.workspace import Member

ROOT = Path(__file__).parent.parent
MEMBERS = {member.distribution: member for member in workspace.load(ROOT).members}


def module(member: Member) -> str:
    """Return the import name of a member, as its manifest gives it."""
    manifest = tomllib.loads((member.folder / "pyproject.toml").read_text())
    return manifest["tool"]["uv"]["build-backend"]["module-name"]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Return who imports whom, over all members and what they import from outside."""
    names = [module(member) for member in MEMBERS.values()]
    return grimp.build_graph(*names, include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("member", MEMBERS.values(), ids=lambda member: member.name)
def test_imports_only_members_that_it_declares(member: Member, graph: grimp.ImportGraph) -> None:
    """Apps stand on core, core on the library, no app on another: whatever is not declared is not imported."""
    own = module(member)
    others = {module(each) for each in MEMBERS.values()} - {own}
    allowed = {module(MEMBERS[name]) for name in member.dependencies}
    imported = {
        found.partition(".")[0]
        for each in (own, *graph.find_descendants(own))
        for found in graph.find_modules_directly_imported_by(each)
    }
    assert imported & others <= allowed


@pytest.mark.parametrize("member", MEMBERS.values(), ids=lambda member: member.name)
def test_no_application_imports_alembic_or_the_command(member: Member, graph: grimp.ImportGraph) -> None:
    """What an application loads at run time holds neither; only the module with its verbs knows the command."""
    if member.table is None:
        return
    own = module(member)
    for each in {own, *graph.find_descendants(own)} - {f"{own}.verbs"}:
        imported = graph.find_modules_directly_imported_by(each)
        assert "alembic" not in imported, each
        assert not [found for found in imported if found.startswith("atriz_database.cli")], each
