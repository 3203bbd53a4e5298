"""Packages and their order, read from the manifests and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atriz_database import workspace
from atriz_database.errors import WorkspaceError

Add = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the folder of an empty workspace, deep enough to have parents of its own."""
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["libs/*", "packages/*", "apps/*"]\n')
    return root


@pytest.fixture
def add(root: Path) -> Add:
    """Return a function that adds a member: its folder, what it depends on, its table."""

    def add(path: str, *needs: str, name: str | None = None, database: str | None = "", variable: str = "URL") -> Path:
        folder = root / path
        folder.mkdir(parents=True)
        text = f'[project]\nname = "{name or folder.name}"\ndependencies = {list(needs)}\n'
        if database is not None:
            text += f'[tool.atriz.database]\nname = "{database or folder.name + "_db"}"\nurl = "{variable}"\n'
        (folder / "pyproject.toml").write_text(text)
        return folder

    return add


def test_packages_come_in_the_order_in_which_they_need_one_another(root: Path, add: Add) -> None:
    """Core first, though it is the last of all in the alphabet and among the folders."""
    add("apps/atriz", "zcore", "database")
    add("apps/pshop", "atriz", "zcore")
    add("libs/database", database=None)
    core = add("packages/zcore", "database", database="atriz_shared", variable="SHARED_DATABASE_URL")
    space = workspace.load(root)
    assert [member.name for member in space.members] == ["database", "zcore", "atriz", "pshop"]
    assert [package.name for package in space.packages] == ["zcore", "atriz", "pshop"]
    first = space.packages[0]
    assert (first.folder, first.root, first.requires) == (core, root, ())
    assert (first.database, first.variable, first.prefix) == ("atriz_shared", "SHARED_DATABASE_URL", "ZCORE")
    assert set(space.package("pshop").requires) == {"zcore", "atriz"}


def test_packages_side_by_side_come_in_the_order_of_their_folders(root: Path, add: Add) -> None:
    for name in ("pshop", "atriz", "mextrack"):
        add(f"apps/{name}")
    assert [package.name for package in workspace.load(root).packages] == ["atriz", "mextrack", "pshop"]


def test_package_needs_what_a_library_without_a_database_needs(root: Path, add: Add) -> None:
    add("apps/pshop", "sign-in")
    add("libs/sign-in", "core", database=None)
    add("packages/core")
    space = workspace.load(root)
    assert space.package("pshop").requires == ("core",)
    assert [package.name for package in space.select("pshop", dependencies=True)] == ["core", "pshop"]


def test_distribution_may_be_called_otherwise_than_its_folder(root: Path, add: Add) -> None:
    """Requirements name distributions, in any spelling that names them, with extras, versions, markers and URLs."""
    add("packages/core", name="atriz-core")
    requirements = ["Atriz_Core[test]>=1; python_version > '3'", "atriz.core", "atriz-core @ file:///x", "atriz-core<2"]
    for number, requirement in enumerate(requirements):
        add(f"apps/app{number}", requirement)
    add("apps/other", "atriz-core-tools")
    space = workspace.load(root)
    assert [space.package(f"app{number}").requires for number in range(4)] == [("core",)] * 4
    assert space.package("other").requires == ()


def test_members_that_are_missing_are_simply_not_there(root: Path, add: Add) -> None:
    """As in a sparse checkout: neither an app that depends on what is missing, nor what is left of a folder."""
    add("apps/mextrack", "core", "requests")
    (root / "apps/pshop/__pycache__").mkdir(parents=True)
    (root / "apps/README.md").write_text("no folder")
    space = workspace.load(root)
    assert [package.name for package in space.packages] == ["mextrack"]
    assert space.package("mextrack").requires == ()


def test_excluded_folder_is_no_member(root: Path, add: Add) -> None:
    (root / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["apps/*"]\nexclude = ["apps/old"]\n')
    add("apps/old")
    add("apps/new")
    assert [package.name for package in workspace.load(root).packages] == ["new"]


def test_root_is_found_from_a_deep_folder(root: Path, add: Add) -> None:
    deep = add("apps/mextrack") / "src/mextrack/deep"
    deep.mkdir(parents=True)
    assert workspace.find_root(deep) == root
    assert workspace.load(deep) == workspace.load(root)


def test_root_is_found_through_a_link(root: Path, add: Add, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(add("apps/mextrack"))
    assert workspace.find_root(tmp_path / "link") == root


def test_outside_of_a_workspace_the_message_says_what_to_do(root: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"No workspace found from .* upwards.*--root"):
        workspace.load(root.parent)


def test_manifests_in_a_circle_are_refused_with_the_circle(root: Path, add: Add) -> None:
    """Each name stands before what it depends on."""
    add("apps/a", "b")
    add("apps/b", "c")
    add("apps/c", "a")
    add("apps/d", "a")
    with pytest.raises(WorkspaceError) as caught:
        workspace.load(root)
    assert any(
        f"circle: {circle}." in str(caught.value)
        for circle in ("a -> b -> c -> a", "b -> c -> a -> b", "c -> a -> b -> c")
    )


def test_manifest_that_depends_on_itself_is_refused(root: Path, add: Add) -> None:
    add("apps/a", "a")
    with pytest.raises(WorkspaceError, match="circle: a -> a"):
        workspace.load(root)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "mextrak",
            "There is no package 'mextrak'. Did you mean mextrack? The packages here are: core, mextrack, pshop.",
        ),
        ("pshp", "Did you mean pshop?"),
        ("billing", "There is no package 'billing'. The packages here are: core"),
    ],
)
def test_unknown_package_is_refused_with_the_nearest_named(root: Path, add: Add, name: str, words: str) -> None:
    add("packages/core")
    add("apps/mextrack", "core")
    add("apps/pshop", "core")
    with pytest.raises(WorkspaceError) as caught:
        workspace.load(root).select(name)
    assert words in str(caught.value)
    assert caught.value.status == 2


def test_library_without_a_database_is_no_package(root: Path, add: Add) -> None:
    add("libs/database", database=None)
    add("packages/core", "database")
    with pytest.raises(WorkspaceError, match="no package 'database'"):
        workspace.load(root).package("database")


def test_run_covers_all_packages_or_one_or_one_with_what_it_needs(root: Path, add: Add) -> None:
    add("packages/core")
    add("apps/mextrack", "core")
    add("apps/pshop", "core")
    space = workspace.load(root)

    def names(name: str | None, dependencies: bool) -> list[str]:
        return [package.name for package in space.select(name, dependencies=dependencies)]

    assert names(None, False) == names(None, True) == ["core", "mextrack", "pshop"]
    assert names("mextrack", False) == ["mextrack"]
    assert names("mextrack", True) == ["core", "mextrack"]
    assert names("core", True) == ["core"]


def test_workspace_without_a_database_says_how_to_own_one(root: Path, add: Add) -> None:
    add("libs/database", database=None)
    for name in (None, "core"):
        with pytest.raises(WorkspaceError, match=r"No member .* owns a database.*\[tool\.atriz\.database\]"):
            workspace.load(root).select(name)


def test_two_folders_of_one_name_are_refused(root: Path, add: Add) -> None:
    add("packages/core", name="one")
    add("apps/core", name="two")
    with pytest.raises(WorkspaceError, match=r"apps/core and .*packages/core have the same name, 'core'"):
        workspace.load(root)


def test_two_distributions_of_one_name_are_refused(root: Path, add: Add) -> None:
    add("apps/a", name="atriz-app")
    add("apps/b", name="Atriz_App")
    with pytest.raises(WorkspaceError, match=r"have the same distribution, 'atriz-app'\. Rename one"):
        workspace.load(root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[project\n", r"mine/pyproject.toml cannot be read: .*line 1"),
        (b"name = '\xff'", r"mine/pyproject.toml cannot be read: "),
        ("", r"mine/pyproject.toml has no name in \[project\]"),
        ("[project]\nname = 3", r"mine/pyproject.toml has no name in \[project\]"),
        ('[project]\nname = "m"\n[tool.atriz.database]\nurl = "U"', "without 'name'. It needs name"),
        ('[project]\nname = "m"\n[tool.atriz.database]\nname = "m_db"', "without 'url'. It needs name"),
        ('[project]\nname = "m"\n[tool.atriz.database]\nname = ""\nurl = "U"', "without 'name'"),
        ('[project]\nname = "m"\n[tool.atriz.database]\nname = "m_db"\nurl = 3', "without 'url'"),
        ('[project]\nname = "m"\n[tool.atriz]\ndatabase = "m_db"', "it should be a table"),
    ],
)
def test_broken_manifest_is_refused_and_named(root: Path, text: str | bytes, words: str) -> None:
    folder = root / "apps/mine"
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WorkspaceError, match=words):
        workspace.load(root)


def test_broken_root_manifest_is_refused_and_named(root: Path) -> None:
    (root / "pyproject.toml").write_text("[tool.uv.workspace]\nmembers = [")
    with pytest.raises(WorkspaceError, match=r"workspace/pyproject.toml cannot be read: Invalid value"):
        workspace.load(root)
