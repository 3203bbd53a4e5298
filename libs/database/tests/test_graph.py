"""The graph for people, for diagrams and for CI: what a change affects, asked of real git repositories."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from atriz_database import graph, workspace
from atriz_database.graph import Node

MEMBERS = {
    "libs/database": ([], None),
    "packages/core": (["atriz-database"], "atriz_shared"),
    "apps/mextrack": (["atriz-core"], "mextrack_db"),
    "apps/pshop": (["atriz-core"], "pshop_db"),
    "apps/status": ([], "status_db"),
}
NAMES = {"database": "atriz-database", "core": "atriz-core"}
EVERY = ["status", "database", "core", "mextrack", "pshop"]

Git = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a workspace with the graph of the real one, and an app that depends on nothing."""
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["libs/*", "packages/*", "apps/*"]\n')
    for path, (needs, database) in MEMBERS.items():
        folder = root / path
        (folder / "src").mkdir(parents=True)
        table = f'[tool.atriz.database]\nname = "{database}"\nurl = "DATABASE_URL"\n' if database else ""
        name = NAMES.get(folder.name, folder.name)
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\ndependencies = {needs}\n{table}')
        (folder / "src/code.py").write_text(f"# The code of {path}, long enough to be known again where it moves.\n")
    (root / "README.md").write_text("Read me.\n")
    (root / ".gitignore").write_text("ignored\n.env\n")
    return root


@pytest.fixture
def git(root: Path) -> Git:
    """Return a function that runs git in the workspace, made a repository with one commit, the tag `base`."""
    no_settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "HOME": str(root.parent)}
    person = {f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environ = {**os.environ, **no_settings, **person}

    def run(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("init", "--initial-branch=main")
    run("add", ".")
    run("commit", "-m", "First")
    run("tag", "base")
    return run


def affected(root: Path, base: str = "base") -> tuple[list[str], str]:
    nodes, reason = graph.affected(workspace.load(root), base)
    return [node.name for node in nodes], reason


def test_graph_has_every_member_what_others_need_first(root: Path) -> None:
    assert graph.graph(workspace.load(root)) == [
        Node("status", "apps/status", "status_db", ()),
        Node("database", "libs/database", None, ()),
        Node("core", "packages/core", "atriz_shared", ("database",)),
        Node("mextrack", "apps/mextrack", "mextrack_db", ("core",)),
        Node("pshop", "apps/pshop", "pshop_db", ("core",)),
    ]


def test_diagram_has_an_arrow_from_each_to_what_it_needs(root: Path) -> None:
    nodes = graph.graph(workspace.load(root))
    assert graph.mermaid(nodes).splitlines() == [
        "graph TD",
        '    status["status<br>status_db"]',
        '    database["database"]',
        '    core["core<br>atriz_shared"]',
        '    mextrack["mextrack<br>mextrack_db"]',
        '    pshop["pshop<br>pshop_db"]',
        "    core --> database",
        "    mextrack --> core",
        "    pshop --> core",
    ]


def test_diagram_of_some_nodes_has_no_arrow_to_one_that_is_left_out(root: Path) -> None:
    (node,) = [node for node in graph.graph(workspace.load(root)) if node.name == "pshop"]
    assert graph.mermaid([node]).splitlines() == ["graph TD", '    pshop["pshop<br>pshop_db"]']


def test_nothing_is_affected_where_nothing_changed(root: Path, git: Git) -> None:
    assert affected(root) == ([], "")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("libs/database/src/code.py", ["database", "core", "mextrack", "pshop"]),
        ("packages/core/src/code.py", ["core", "mextrack", "pshop"]),
        ("apps/pshop/src/code.py", ["pshop"]),
        ("apps/pshop/README.md", ["pshop"]),
        ("apps/status/pyproject.toml", ["status"]),
        ("README.md", []),
        ("docs/guide/index.html", []),
        ("packages/core/src/wörter \n.sql", ["core", "mextrack", "pshop"]),
    ],
)
@pytest.mark.parametrize("state", ["committed", "staged", "in the working tree"])
def test_change_affects_its_package_and_all_that_stands_on_it(
    root: Path, git: Git, path: str, names: list[str], state: str
) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    with (root / path).open("a") as file:
        file.write("# changed\n")
    if state != "in the working tree":
        git("add", ".")
    if state == "committed":
        git("commit", "-m", "Change")
    assert affected(root) == (names, "")


@pytest.mark.parametrize("path", ["requirements.txt", "noxfile.py", ".github/workflows/ci.yml", "apps/new.txt"])
def test_file_of_no_package_affects_every_one_and_is_named(root: Path, git: Git, path: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("changed\n")
    assert affected(root) == (EVERY, f"{path} belongs to no package; every package counts as affected")


def test_file_that_git_ignores_changes_nothing(root: Path, git: Git) -> None:
    (root / "apps/pshop/.env").write_text("APP_ENV=test\n")
    (root / "ignored").write_text("x")
    assert affected(root) == ([], "")


def test_deleted_file_is_a_change(root: Path, git: Git) -> None:
    (root / "apps/pshop/src/code.py").unlink()
    assert affected(root) == (["pshop"], "")


def test_file_that_moved_is_a_change_where_it_was_and_where_it_is(root: Path, git: Git) -> None:
    git("mv", "apps/pshop/src/code.py", "apps/mextrack/src/moved.py")
    git("commit", "-m", "Move")
    assert affected(root) == (["mextrack", "pshop"], "")


def test_package_that_was_removed_affects_every_one(root: Path, git: Git) -> None:
    git("rm", "-r", "-q", "apps/status")
    names, reason = affected(root)
    assert names == [name for name in EVERY if name != "status"]
    assert "apps/status/pyproject.toml belongs to no package" in reason


def test_what_the_base_got_since_is_nobodys_change_here(root: Path, git: Git) -> None:
    """Compared is from where this branch left it."""
    git("switch", "-c", "feature")
    (root / "apps/pshop/src/code.py").write_text("feature\n")
    git("commit", "-am", "Feature")
    git("switch", "main")
    (root / "packages/core/src/code.py").write_text("main\n")
    git("commit", "-am", "Main")
    git("switch", "feature")
    assert affected(root, "main") == (["pshop"], "")


def test_workspace_below_the_top_of_a_repository_sees_its_own_files_only(root: Path, git: Git) -> None:
    (root / ".git").rename(root.parent / ".git")
    (root.parent / "elsewhere.txt").write_text("x")
    git("add", "-A", "..")
    git("commit", "-m", "Lower")
    git("tag", "--force", "base")
    (root.parent / "elsewhere.txt").write_text("y")
    (root / "apps/pshop/src/code.py").write_text("y\n")
    assert affected(root) == (["pshop"], "")


@pytest.mark.parametrize("base", ["no-such-branch", "0" * 40, "", "--stat"])
def test_base_that_git_does_not_know_affects_every_package(root: Path, git: Git, base: str) -> None:
    names, reason = affected(root, base)
    assert names == EVERY
    assert reason.startswith(f"git cannot compare with {base} (")
    assert reason.endswith("); every package counts as affected")


def test_shallow_clone_affects_every_package_and_says_so(root: Path, git: Git) -> None:
    """As CI makes one: the base's commit is not in it."""
    base = git("rev-parse", "HEAD").strip()
    (root / "apps/pshop/src/code.py").write_text("changed\n")
    git("commit", "-am", "Change")
    clone = root.parent / "clone"
    git("clone", "--depth=1", root.as_uri(), str(clone))
    names, reason = affected(clone, base)
    assert names == EVERY
    assert f"git cannot compare with {base} (fatal: " in reason


def test_folder_that_is_no_repository_affects_every_package_and_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    names, reason = affected(root)
    assert names == EVERY
    assert "git cannot compare with base (fatal: not a git repository" in reason


def test_machine_without_git_affects_every_package_and_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    assert affected(root) == (EVERY, "git is not installed; every package counts as affected")
