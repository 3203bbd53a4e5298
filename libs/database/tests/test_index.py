"""What is kept of revision files is never believed when it is no longer so; Alembic, which keeps nothing, is asked."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import to_tuple
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tree import Tree

from atriz_database import databases, index, revisions
from atriz_database.errors import RevisionError
from atriz_database.look import look
from atriz_database.revisions import Revisions, Undecided

_INDEX = "atriz-revisions.json"
_OLD = 1_000_000_000 * 10**9
# All of one length: a file that gets another of them keeps its size.
_IDS = [f"{number:04x}" for number in range(1, 13)]
_some = st.integers(0, 99)


def text(id_: str, down: str | tuple[str, ...] | None, more: str = "") -> bytes:
    return (
        f'"""Do it."""\nrevision = "{id_}"\ndown_revision = {down!r}\n{more}\n\ndef upgrade():\n    x = 1\n'
    ).encode()


@contextmanager
def long_after() -> Iterator[None]:
    """Let the files' last changes be long enough ago to be kept: the clock goes on, no one waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(revisions, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + 3 * 10**9))
        yield


def tick(folder: Path) -> None:
    """Return when the file system's clock has moved on, which is coarser than the processor's."""
    probe = folder / "probe"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        probe.touch()


Answer = str | tuple[dict[str, tuple[frozenset[str], str]], frozenset[str]]
"""A history: for each id what it stands on and its file's name; and the heads. Or why there is none."""


def answer(read: Callable[[], Revisions]) -> Answer:
    try:
        found = read()
    except Undecided:
        return "undecided"
    except RevisionError:
        return "error"
    return {id_: (frozenset(each.down), each.path.name) for id_, each in found.by_id.items()}, frozenset(found.heads)


def without_index(folder: Path) -> Answer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "load", lambda folder: {})
        patch.setattr(index, "save", lambda folder, known, now: None)
        return answer(lambda: revisions.read(folder))


def alembics(folder: Path) -> tuple[Answer, ScriptDirectory]:
    """Return Alembic's answer. What Python has compiled is not kept: it goes by size and the second of a change."""
    script = ScriptDirectory(str(folder.parent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        try:
            found = {
                each.revision: (frozenset(to_tuple(each.down_revision, ())), Path(each.path).name)
                for each in script.walk_revisions()
            }
            return (found, frozenset(script.get_heads())), script
        except Exception:  # Whatever a file says when it is run; a warning, of two with one id, is an error here.
            return "error", script


def would_apply(script: ScriptDirectory, rows: tuple[str, ...]) -> list[str]:
    """Return what Alembic's own upgrade would run on a database with these version rows."""
    return [step.revision.revision for step in script._upgrade_revs("heads", rows)]  # type: ignore[arg-type]


def below(found: Revisions, id_: str) -> set[str]:
    return found.ancestors([id_]) - {id_}


class Folder(RuleBasedStateMachine):
    """A folder of revisions to which happens what happens to folders, read after everything that does."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="atriz-index-"))
        self.versions = self.root / "versions"
        self.versions.mkdir()
        self.elsewhere = self.root / "elsewhere"
        self.elsewhere.mkdir()
        self.index = self.versions / "__pycache__" / _INDEX
        self.written = 0
        self.checkout: dict[str, tuple[bytes, int]] = {}
        self.indexes: list[bytes] = []

    def teardown(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.root)

    def file(self, number: int) -> Path | None:
        """Return one of the files, if there are any."""
        files = [path for path in sorted(self.versions.iterdir()) if path.is_file() and path.name != "__pycache__"]
        return files[number % len(files)] if files else None

    def ids(self) -> list[str]:
        """Return the ids that the files have."""
        found = without_index(self.versions)
        return sorted(found[0]) if isinstance(found, tuple) else []

    def write(self, path: Path, content: bytes, modified: int = 0) -> None:
        """Write a file in place, its time of modification set if one is given."""
        path.write_bytes(content)
        if modified:
            os.utime(path, ns=(modified, modified))

    @initialize(count=st.integers(0, 5))
    def begin(self, count: int) -> None:
        """Write a line of revisions."""
        for number in range(count):
            self.add(number, [number] if number else [], "")

    @rule(id_=_some, below=st.lists(_some, max_size=2), more=st.sampled_from(["", "", "", "branch_labels = None"]))
    def add(self, id_: int, below: list[int], more: str) -> None:
        """A branch, a merge, a further one, a root, an id that is taken."""
        known = self.ids()
        down = tuple(dict.fromkeys(known[each % len(known)] for each in below)) if known else ()
        free = [each for each in _IDS if each not in known] if id_ % 5 else _IDS
        id_text = free[id_ % len(free)] if free else _IDS[0]
        self.written += 1
        path = self.versions / f"{self.written:03}_{id_text}.py"
        path.write_bytes(text(id_text, down[0] if len(down) == 1 else down or None, more))

    @rule(number=_some, old=_some, new=_some, dated=st.booleans())
    def edit_an_id(self, number: int, old: int, new: int, dated: bool) -> None:
        """Size, inode and time of modification stay what they were."""
        if path := self.file(number):
            content, modified = path.read_bytes(), path.stat().st_mtime_ns
            there = [each.encode() for each in _IDS if each.encode() in content]
            if there:
                content = content.replace(there[old % len(there)], _IDS[new % len(_IDS)].encode(), 1)
            self.write(path, content, modified if dated else 0)

    @rule(number=_some, body=st.sampled_from([b"x = 2", b"xxx = 3", b"revision = 'wrong'"]))
    def edit_the_body(self, number: int, body: bytes) -> None:
        """Change what is no id, of the same size or another."""
        if path := self.file(number):
            self.write(path, path.read_bytes().replace(b"x = 1", body))

    @rule(number=_some, to=_some)
    def rename(self, number: int, to: int) -> None:
        """Give a file another name, which may be another file's."""
        if path := self.file(number):
            path.replace(self.versions / f"{to:03}_renamed.py")

    @rule(number=_some)
    def delete(self, number: int) -> None:
        """Remove a file."""
        if path := self.file(number):
            path.unlink()

    @rule(one=_some, other=_some, in_place=st.booleans())
    def swap(self, one: int, other: int, in_place: bool) -> None:
        """Two files' contents change places, each with the other's times or its own."""
        left, right = self.file(one), self.file(other)
        if left is None or right is None or left == right:
            return
        if in_place:
            kept = [(path.read_bytes(), path.stat().st_mtime_ns) for path in (left, right)]
            self.write(left, kept[1][0], kept[0][1])
            self.write(right, kept[0][0], kept[1][1])
        else:
            left.rename(self.root / "aside")
            right.rename(left)
            (self.root / "aside").rename(right)

    @rule(one=_some, other=_some, replaced=st.booleans())
    def copy_with_its_times(self, one: int, other: int, replaced: bool) -> None:
        """``cp -p`` of one over another, or a copy that is renamed over it, as rsync does."""
        source, target = self.file(one), self.file(other)
        if source is None or target is None or source == target:
            return
        to = self.root / "copied" if replaced else target
        shutil.copy2(source, to)
        if replaced:
            to.replace(target)

    @rule()
    def commit(self) -> None:
        """Remember the files as they are."""
        self.checkout = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in self.versions.glob("*.py")}

    @rule(dated=st.booleans())
    def check_out(self, dated: bool) -> None:
        """As git does: what differs is removed or written anew; or as a backup does, with the times of then."""
        for path in list(self.versions.glob("*.py")):
            if path.name not in self.checkout:
                path.unlink()
        for name, (content, modified) in self.checkout.items():
            path = self.versions / name
            if not path.exists() or path.read_bytes() != content:
                path.unlink(missing_ok=True)
                self.write(path, content, modified if dated else 0)

    @rule(number=_some, what=st.sampled_from([b"revision =\n", b'branch_labels = ("x",)\n', b"revision = 7\n", b""]))
    def break_or_complicate(self, number: int, what: bytes) -> None:
        """Make a file one that cannot be read, or takes Alembic."""
        if path := self.file(number):
            self.write(path, path.read_bytes().replace(b'"""Do it."""\n', what))

    @rule(number=_some, name=st.sampled_from(["", "store.bin", "other.py"]), named=st.sampled_from(["", "link.txt"]))
    def link(self, number: int, name: str, named: str) -> None:
        """Put the file elsewhere, and a link in its place: a change there changes nothing of the link."""
        path = self.file(number)
        taken = named and (self.versions / named).exists()
        if path is not None and not path.is_symlink() and not taken:
            self.written += 1
            folder = self.elsewhere / str(self.written)
            folder.mkdir()
            to = folder / (name or path.name)
            path.rename(to)
            (self.versions / named if named else path).symlink_to(to)

    @rule(kept=st.sampled_from(["", "[]", "7", '{"format": 1, "files": []}', '{"format": 1, "files": 3}', "\0\xff"]))
    def spoil_the_index(self, kept: str) -> None:
        """Put something else in its place."""
        if self.index.is_file():
            self.index.write_text(kept)

    @rule(number=_some, what=st.sampled_from(["cut", "format", "fields"]))
    def damage_the_index(self, number: int, what: str) -> None:
        """Cut it, or have it written by another release."""
        if not self.index.is_file():
            return
        content = self.index.read_text()
        if what == "cut":
            self.index.write_text(content[: number * len(content) // 100])
        elif what == "format":
            self.index.write_text(content.replace('"format":1', '"format":0').replace(_IDS[0], _IDS[1]))
        else:
            self.index.write_text('{"format":1,"files":{"a.py":[1]}}')

    @rule(number=_some)
    def finish_late(self, number: int) -> None:
        """Another run writes what it read some time ago."""
        if self.indexes and self.index.parent.is_dir() and not self.index.is_dir():
            self.index.write_bytes(self.indexes[number % len(self.indexes)])

    @rule(what=st.sampled_from(["none", "file", "folder"]))
    def block_the_index(self, what: str) -> None:
        """It cannot be written, which for root no mode would do; or it can be again."""
        folder = self.index.parent
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)
        if what == "file":
            folder.write_text("")
        elif what == "folder":
            self.index.mkdir(parents=True)

    @rule(picked=st.lists(_some, max_size=4))
    def ask_what_is_pending(self, picked: list[int]) -> None:
        """For a database with any version rows; by the index, as the files were when it was last written."""
        with long_after():
            if answer(lambda: revisions.read(self.versions)) in ("undecided", "error"):
                return
            found = revisions.read(self.versions)
        known = sorted(found.by_id)
        chosen = {known[each % len(known)] for each in picked} if known else set()
        rows = tuple(sorted(each for each in chosen if not any(each in below(found, other) for other in chosen)))
        theirs = would_apply(alembics(self.versions)[1], rows)
        assert set(found.pending(rows)) == set(theirs)
        assert (set(rows) == set(found.heads)) == (not theirs)

    @invariant()
    def is_read_as_alembic_reads_it(self) -> None:
        """By the index, without it, and by Alembic: the same."""
        tick(self.root)
        with long_after():
            found = answer(lambda: revisions.read(self.versions))
        assert found == without_index(self.versions)
        theirs, _ = alembics(self.versions)
        if found not in ("undecided", "error"):
            assert found == theirs
            if not self.index.is_dir() and self.index.parent.is_dir():
                # So that the next reading is by the index.
                assert sorted(index.load(self.versions)) == sorted(name for _, name in found[0].values())
        elif found == "error":
            assert theirs == "error"
        if self.index.is_file() and len(self.indexes) < 20:
            self.indexes.append(self.index.read_bytes())


def _run(examples: int, steps: int) -> None:
    given_ = hypothesis_settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(Folder, settings=given_)


def test_whatever_happens_to_the_files_they_are_read_as_alembic_reads_them() -> None:
    """Edited, renamed, swapped, copied with old times, checked out; the index cut, foreign, late or not to be kept."""
    _run(100, 15)


@pytest.mark.soak
def test_whatever_happens_to_the_files_for_long() -> None:
    """The same, for minutes."""
    _run(500, 30)


def history(folder: Path, count: int) -> Path:
    versions = folder / "versions"
    versions.mkdir()
    for number in range(count):
        (versions / f"{number}.py").write_bytes(text(_IDS[number], _IDS[number - 1] if number else None))
    return versions


def test_what_changed_just_now_is_not_kept(tmp_path: Path) -> None:
    """It may change again within one tick of the file system's clock, and keep its size: nobody would see it."""
    versions = history(tmp_path, 3)
    revisions.read(versions)
    assert index.load(versions) == {}
    with long_after():
        revisions.read(versions)
        assert sorted(index.load(versions)) == ["0.py", "1.py", "2.py"]


def test_however_fast_changes_follow_each_other_they_are_seen(tmp_path: Path) -> None:
    """The same file written and read again and again, its size and time of modification always the same."""
    versions = history(tmp_path, 1)
    for number in range(300):
        id_ = _IDS[number % len(_IDS)]
        (versions / "0.py").write_bytes(text(id_, None))
        os.utime(versions / "0.py", ns=(_OLD, _OLD))
        assert revisions.read(versions).heads == (id_,)


def test_what_is_kept_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second reading parses nothing but the one file that has changed."""
    versions = history(tmp_path, 3)
    tick(tmp_path)
    with long_after():
        before = revisions.read(versions)
        parsed = []
        header = revisions._header
        monkeypatch.setattr(revisions, "_header", lambda path, text: parsed.append(path.name) or header(path, text))
        assert revisions.read(versions) == before
        assert parsed == []
        (versions / "2.py").write_bytes(text(_IDS[7], _IDS[1]))
        assert revisions.read(versions).heads == (_IDS[7],)
        assert parsed == ["2.py"]


def test_a_file_that_goes_while_the_folder_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a checkout takes another branch just then."""
    versions = history(tmp_path, 2)
    entries = revisions._entries(versions)
    monkeypatch.setattr(revisions, "_entries", lambda folder: entries)
    (versions / "1.py").unlink()
    with pytest.raises(RevisionError, match=r"versions/1\.py cannot be read: No such file"):
        revisions.read(versions)


def test_many_runs_at_once_and_files_that_come_and_go(tmp_path: Path) -> None:
    """Eight processes read while files are replaced and removed: a history that was, or one message; never the rest."""
    versions = history(tmp_path, 4)
    last, spare = versions / "3.py", tmp_path / "spare.py"
    heads = {(_IDS[2],), (_IDS[3],), (_IDS[4],)}
    children = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with long_after():
                    for _ in range(150):
                        try:
                            good = revisions.read(versions).heads in heads
                        except RevisionError as error:
                            good = "3.py cannot be read: No such file" in str(error)
                        assert good
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    states = dict.fromkeys(children)
    while None in states.values():
        for number in (3, 4):
            spare.write_bytes(text(_IDS[number], _IDS[2]))
            os.utime(spare, ns=(_OLD, _OLD))
            spare.replace(last)
        last.unlink()
        for pid in [pid for pid, status in states.items() if status is None]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                states[pid] = os.waitstatus_to_exitcode(status)
    assert set(states.values()) == {0}
    with long_after():
        assert revisions.read(versions).heads == (_IDS[2],)
    assert [path.name for path in (versions / "__pycache__").iterdir()] == [_INDEX]


def test_an_index_is_never_committed() -> None:
    """It lies where Python keeps what it compiled, which git leaves out."""
    assert index._file(Path("versions")).parent.name == "__pycache__"
    ignored = Path(__file__).parents[3] / ".gitignore"
    assert "__pycache__/" in ignored.read_text().split()


@pytest.fixture
def core(tree: Tree) -> Path:
    """Return the versions folder of a package whose database is there, empty but for Alembic's table."""
    folder = tree.add("core", revisions=0)
    databases.create(tree.target("core"))
    with tree.connect("core") as connection:
        connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    return folder / "migrations" / "versions"


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    below=st.lists(st.lists(_some, max_size=2), max_size=7),
    rows=st.lists(_some, max_size=4, unique=True),
    at_heads=st.booleans(),
)
def test_a_look_says_up_to_date_only_where_alembic_has_nothing_to_do(
    tree: Tree, core: Path, below: list[list[int]], rows: list[int], at_heads: bool
) -> None:
    """On a database with any version rows, unknown ones and ones above each other included."""
    for path in core.glob("*.py"):
        path.unlink()
    for number, picked in enumerate(below):
        down = tuple(dict.fromkeys(_IDS[each % number] for each in picked)) if number else ()
        (core / f"{number}.py").write_bytes(text(_IDS[number], down))
    tick(core.parent)
    with long_after():
        files = revisions.read(core)
        assert files == revisions.read(core)
    known = [*sorted(files.by_id), "ffff"]
    current = set(files.heads) if at_heads else {known[each % len(known)] for each in rows}
    target = tree.target("core")
    with databases.connect(target) as connection:
        connection.execute("TRUNCATE alembic_version")
        connection.cursor().executemany("INSERT INTO alembic_version VALUES (%s)", [[each] for each in current])
    (seen,) = look([target], [files])
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: databases.connect(target), poolclass=sqlalchemy.NullPool
    )
    with engine.connect() as connected:
        heads = MigrationContext.configure(connected).get_current_heads()
    assert set(seen.current) == set(heads) == current
    script = alembics(core)[1]
    assert set(script.get_heads()) == set(files.heads)
    try:
        theirs: list[str] | None = would_apply(script, heads)
    except Exception:  # An id that no file has, or rows on one line: Alembic says so, and does nothing.
        theirs = None
    if seen.state == "up-to-date":
        assert theirs == []
    elif theirs == []:
        assert seen.state == "diverged"
    if theirs and seen.state == "pending":
        assert set(seen.pending) == set(theirs)
