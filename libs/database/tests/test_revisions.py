"""Revision files read without Alembic: the same as Alembic reads, or not at all."""

from __future__ import annotations

import hashlib
import itertools
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from alembic.util import to_tuple
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from atriz_database import revisions
from atriz_database.errors import RevisionError
from atriz_database.revisions import Revisions, Undecided

# What stands around the ids in files that people write; WRONG is the id of none.
DOCSTRINGS = [
    "",
    '"""Add a table."""\n',
    "'''Add a table.\n\ndef upgrade() does it.\n'''\n",
    '"""Add.\n\ndef upgrade():\n    pass\n\nrevision = "wrong"\ndown_revision = "wrong"\n"""\n',
    "'''Add.\n@decorated\nclass X:\nrevision = 'wrong'\n'''\n",
    '"""Add.\n\nRevision ID: wrong\nRevises: wrong\n"""\n',
    "# -*- coding: utf-8 -*-\n",
    '# revision = "wrong"\n# def upgrade(): größe\n',
]
IMPORTS = [
    "",
    "from alembic import op\nimport sqlalchemy as sa\n",
    "from __future__ import annotations\n",
    "import os; import re\n",
    "if 1:\n    import os\nelse:\n    import re\n",
    "try:\n    import os\nexcept ImportError:\n    os = None\n",
    "words = [word for word in 'a b'.split() if word]\n",
    "import functools\n\n\n@functools.cache\ndef early():\n    revision = 'wrong'\n    return revision\n\n\n",
    "class Early:\n    revision = 'wrong'\n    down_revision: str = 'wrong'\n\n\n",
    "async def early():\n    depends_on = 'wrong'\n",
]
BODIES = [
    "",
    "\n\ndef upgrade():\n    pass\n\n\ndef downgrade():\n    pass\n",
    "\n\ndef upgrade() -> None:\n    revision = 'wrong'\n    print(revision)\n",
    "\n\ndef upgrade():\n    return '''\nrevision = 'wrong'\ndown_revision = 'wrong'\ndef x\n'''\n",
    "\n\ndef upgrade(revision=None, *, down_revision='wrong'):\n    '''The revision = x.'''\n",
    "\n\nSQL = '''\nSELECT 1;\n-- revision = 'wrong'\n'''\n\n\ndef upgrade():\n    pass\n",
    "\n\nclass Late:\n    revision = 'wrong'\n",
]
ANNOTATIONS = ["", ": str", ': "str | None"', ": object"]
SIGNS = [" = ", "=", "   =   ", " = \\\n    "]
QUOTES = ['"{}"', "'{}'", '"""{}"""', 'u"{}"', '("{}")']
COMMENTS = ["", "  # def x", "  # revision = 'wrong'", ";"]
# Each a way to give a name its value that cannot be told without running it, or hardly.
ODD = [
    "{name} = str({value})\n",
    "if True:\n    {name} = {value}\n",
    "try:\n    {name} = {value}\nfinally:\n    pass\n",
    "for {name} in [{value}]:\n    pass\n",
    "{name}, unused = {value}, None\n",
    "({name} := {value})\n",
    "from types import SimpleNamespace\nx = SimpleNamespace(y={value})\n{name} = x.y\n",
    "{name} = 'wrong'\nif True: {name} = {value}\n",
    "{name} = 'wrong'\n\n\ndef f():\n    pass\n\n\nif f() is None:\n    {name} = {value}\n",
    "{name} = 'wrong'\n\n\ndef f():\n    pass\n\n\nx, {name} = 1, {value}\n",
    "{name} = 'wrong'\n\n\nclass C: pass\nx = 1; {name} = {value}\n",
]


@dataclass(frozen=True)
class History:
    """A generated history: its files' texts by name, what they mean, and whether each is written plainly."""

    files: dict[str, bytes]
    down: dict[str, tuple[str, ...]]
    plain: bool


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Return a history of any shape: a line, branches, merges, several roots; names that say nothing of the order."""
    count = draw(st.integers(0, 7))
    ids = draw(
        st.lists(st.text("0123456789abcdef_xyz", min_size=1, max_size=12), min_size=count, max_size=count, unique=True)
    )
    names = draw(
        st.lists(
            st.from_regex(r"[a-z0-9][a-z0-9_ .-]{0,12}\.py", fullmatch=True),
            min_size=count,
            max_size=count,
            unique=True,
        )
    )
    down: dict[str, tuple[str, ...]] = {}
    files = {}
    plain = True
    may_be_odd = draw(st.booleans())
    for position, (id_, name) in enumerate(zip(ids, names, strict=True)):
        line = [ids[position - 1]] if position else []
        any_before = st.lists(st.sampled_from(ids[:position]), max_size=3, unique=True) if position else st.just([])
        down[id_] = tuple(draw(st.just(line) | any_before))
        text, is_plain = draw(texts(id_, down[id_], may_be_odd))
        files[name] = text
        plain = plain and is_plain
    return History(files, down, plain)


@st.composite
def texts(draw: st.DrawFn, id_: str, down: tuple[str, ...], may_be_odd: bool) -> tuple[bytes, bool]:
    """Return the text of a revision file, and whether what it says can be told without running it."""

    def quoted(text: str) -> str:
        return draw(st.sampled_from(QUOTES)).format(text)

    forms = ["({})"] if len(down) != 1 else ["({},)"]
    forms += ["[{}]", "(\n    {},\n)" if down else "(\n)", "[  # both\n{}\n]"]
    several = draw(st.sampled_from(forms)).format(draw(st.sampled_from([", ", ",", ",\n    "])).join(map(quoted, down)))
    alternatives = {0: ["None", several], 1: [several, *map(quoted, down)]}.get(len(down), [several])
    values = {"revision": quoted(id_), "down_revision": draw(st.sampled_from(alternatives))}
    for name in ("branch_labels", "depends_on"):
        values |= draw(st.sampled_from([{}, {name: "None"}, {name: "()"}]))
    odd = draw(st.sampled_from(["revision", "down_revision", None])) if may_be_odd else None
    lines = [
        draw(st.sampled_from(ODD)).format(name=name, value=value)
        if name == odd
        else name
        + draw(st.sampled_from(ANNOTATIONS))
        + draw(st.sampled_from(SIGNS))
        + value
        + draw(st.sampled_from(COMMENTS))
        + "\n"
        for name, value in draw(st.permutations(list(values.items())))
    ]
    docstring, imports, body = (draw(st.sampled_from(parts)) for parts in (DOCSTRINGS, IMPORTS, BODIES))
    late = draw(st.booleans())
    text = docstring + imports + ("".join([body, *lines]) if late else "".join([*lines, body]))
    text = draw(st.sampled_from(["", "\ufeff"])) + text.replace("\n", draw(st.sampled_from(["\n", "\r\n"])))
    return text.encode(), odd is None


def write(folder: Path, files: dict[str, bytes]) -> Path:
    versions = folder / "versions"
    versions.mkdir()
    for name, text in files.items():
        (versions / name).write_bytes(text)
    return versions


@hypothesis_settings(max_examples=150, deadline=None)
@given(histories(), st.data())
def test_history_is_the_one_that_alembic_reads(history: History, data: st.DataObject) -> None:
    """Ids, what each stands on, heads, and what an upgrade from any state of a database would apply."""
    with tempfile.TemporaryDirectory() as folder:
        versions = write(Path(folder), history.files)
        try:
            found = revisions.read(versions)
        except Undecided:
            assert not history.plain
            return
        script = ScriptDirectory(folder)
        theirs = {each.revision: each for each in script.walk_revisions()}
        assert {id_: each.down for id_, each in found.by_id.items()} == {
            id_: to_tuple(each.down_revision, ()) for id_, each in theirs.items()
        }
        assert {id_: each.path.name for id_, each in found.by_id.items()} == {
            id_: Path(each.path).name for id_, each in theirs.items()
        }
        assert {id_: each.down for id_, each in found.by_id.items()} == history.down
        assert set(found.heads) == set(script.get_heads())

        some = data.draw(st.sets(st.sampled_from(sorted(history.down)))) if history.down else set()
        applied = found.ancestors(some)
        current = tuple(applied - {down for id_ in applied for down in history.down[id_]})
        pending = found.pending(current)
        assert set(pending) == {
            each.revision for each in script.iterate_revisions("heads", current, implicit_base=True)
        }
        assert len(pending) == len(set(pending))
        done = set(applied)
        for id_ in pending:
            assert set(history.down[id_]) <= done
            done.add(id_)


@hypothesis_settings(max_examples=150, deadline=None)
@given(histories())
def test_the_edits_that_the_message_names_mend_several_heads(history: History) -> None:
    """One after the other they lead to a single head, and no revision is lost on the way."""
    down = dict(history.down)
    names = dict(zip(down, history.files, strict=True))
    for left in itertools.count():
        found = arranged(down, names)
        try:
            head = found.single_head()
        except RevisionError as error:
            edit = re.search(r'in (\S.*\.py) set down_revision = "(.*)"', str(error))
            assert edit is not None
            (mended,) = [id_ for id_, name in names.items() if name == edit[1]]
            down[mended] = (edit[2],)
            assert left < len(down)
        else:
            assert found.ancestors([head] if head else []) == set(down)
            break


def arranged(down: dict[str, tuple[str, ...]], names: dict[str, str]) -> Revisions:
    folder = Path("versions")
    return revisions.arrange(
        folder, [revisions.Revision(id_, below, str(folder / names[id_])) for id_, below in down.items()]
    )


def revision(id_: str, down: str | tuple[str, ...] | None = None, more: str = "") -> bytes:
    return f'revision = "{id_}"\ndown_revision = {down!r}\n{more}\n\ndef upgrade():\n    pass\n'.encode()


def read(folder: Path, **files: bytes) -> Revisions:
    return revisions.read(write(folder, {f"{name}.py": text for name, text in files.items()}))


def refused(folder: Path, **files: bytes) -> str:
    with pytest.raises(RevisionError) as caught:
        read(folder, **files)
    return str(caught.value)


def test_pending_is_oldest_first_and_by_name_where_the_history_says_nothing(tmp_path: Path) -> None:
    found = read(
        tmp_path, z_first=revision("1"), b=revision("2", "1"), a=revision("3", "1"), m=revision("4", ("2", "3"))
    )
    assert found.pending(()) == ("1", "3", "2", "4")
    assert found.pending(["3"]) == ("2", "4")
    assert found.pending(["2", "3"]) == ("4",)
    assert found.pending(["4"]) == ()
    assert found.single_head() == "4"


def test_id_that_no_file_has_is_unknown(tmp_path: Path) -> None:
    assert read(tmp_path, a=revision("1")).unknown(["1", "9"]) == ("9",)


def test_empty_folder_is_a_history_without_a_head(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.heads, found.pending(()), found.single_head()) == ((), (), None)


def test_only_what_alembic_takes_for_a_revision_is_read(tmp_path: Path) -> None:
    versions = write(
        tmp_path,
        {"a.py": revision("1"), "__init__.py": b"x", "a.sql": b"x", "a.py~": b"x", ".#a.py": b"x", "README": b"x"},
    )
    (versions / "__pycache__").mkdir()
    assert list(revisions.read(versions).by_id) == ["1"]


@pytest.mark.parametrize(
    "more", ['depends_on = "0"', 'branch_labels = ("x",)', "revision += 'b'", "revision: str", "depends_on = f()"]
)
def test_what_takes_alembic_to_know_is_left_to_it(tmp_path: Path, more: str) -> None:
    with pytest.raises(Undecided):
        read(tmp_path, a=revision("1", more=more))


@pytest.mark.parametrize(
    "text",
    [
        b"revision = 7\ndown_revision = None",
        b'revision = ""\ndown_revision = None',
        b'revision = "1"\ndown_revision = 7',
        b'revision = "1"\ndown_revision = ""',
        b'revision = "1"\ndown_revision = {"0": "0"}',
        b'revision = "1"\ndown_revision = (None,)',
        b"from ids import revision\ndown_revision = None",
        b"from ids import one as revision\ndown_revision = None",
    ],
)
def test_value_that_is_no_id_is_left_to_alembic(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(Undecided):
        read(tmp_path, a=text)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_syntax_error_is_shown_with_its_line_and_a_caret(tmp_path: Path, newline: str) -> None:
    text = newline.join(['"""Größe."""', 'revision = "1"', "down_revision = (None", ""])
    message = refused(tmp_path, a=text.encode())
    assert message.splitlines() == [
        f"{tmp_path}/versions/a.py, line 3: '(' was never closed",
        "    down_revision = (None",
        "                    ^",
    ]


def test_syntax_error_before_the_ids_is_found(tmp_path: Path) -> None:
    message = refused(tmp_path, a=b'def upgrade(:\n    pass\n\n\nrevision = "1"\ndown_revision = None\n')
    assert f"{tmp_path}/versions/a.py, line 1: " in message
    assert message.splitlines()[1] == "    def upgrade(:"


@pytest.mark.parametrize("text", [b"\xff\xfe", b"x = 1\0\n\n\ndef upgrade():\n    pass\n", b"# coding: none\n"])
def test_file_that_is_no_python_text_is_named(tmp_path: Path, text: bytes) -> None:
    message = refused(tmp_path, a=text)
    assert message.startswith(
        (f"{tmp_path}/versions/a.py, line 1: ", f"{tmp_path}/versions/a.py cannot be read as Python: ")
    )


def test_syntax_error_behind_the_ids_is_found_by_the_check_and_costs_no_reading(tmp_path: Path) -> None:
    (path,) = (each.path for each in read(tmp_path, a=revision("1", more="\ndef f(:\n    pass")).by_id.values())
    with pytest.raises(RevisionError, match=r"versions/a\.py, line 4: "):
        revisions.check_syntax(path)


def test_check_of_a_sound_file_says_nothing(tmp_path: Path) -> None:
    (path,) = (each.path for each in read(tmp_path, a=revision("1")).by_id.values())
    revisions.check_syntax(path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    versions = write(tmp_path, {"a.py": revision("1")})
    (versions / "b.py").mkdir()
    with pytest.raises(RevisionError, match=r"versions/b\.py cannot be read: Is a directory"):
        revisions.read(versions)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RevisionError, match=r"versions is missing\. A package with a database keeps"):
        revisions.read(tmp_path / "versions")


@pytest.mark.parametrize(
    ("text", "name"),
    [(b'down_revision = "0"', "revision"), (b'revision = "1"', "down_revision"), (b"", "revision")],
)
def test_file_without_one_of_its_ids_is_named(tmp_path: Path, text: bytes, name: str) -> None:
    assert f'{tmp_path}/versions/a.py has no line {name} = "…"' in refused(tmp_path, a=text)


def test_two_files_with_one_id_are_named(tmp_path: Path) -> None:
    message = refused(tmp_path, a=revision("1"), b=revision("2", "1"), c=revision("1"))
    assert "a.py and c.py in " in message
    assert "both have revision '1'. Give one of them another id" in message


def test_unknown_down_revision_is_named_with_its_file(tmp_path: Path) -> None:
    message = refused(tmp_path, a=revision("1"), b=revision("2", "9"))
    assert f"{tmp_path}/versions/b.py has down_revision '9', but no file in {tmp_path}/versions has that id" in message


@pytest.mark.parametrize(
    ("down", "circles"),
    [
        ({"a": "a"}, ["a.py -> a.py"]),
        ({"a": "b", "b": "a"}, ["a.py -> b.py -> a.py", "b.py -> a.py -> b.py"]),
        ({"a": None, "b": ("a", "c"), "c": "b", "d": "c"}, ["b.py -> c.py -> b.py", "c.py -> b.py -> c.py"]),
    ],
    ids=["one", "two", "below a head"],
)
def test_circle_is_refused_with_its_files(
    tmp_path: Path, down: dict[str, str | tuple[str, ...] | None], circles: list[str]
) -> None:
    message = refused(tmp_path, **{name: revision(name, below) for name, below in down.items()})
    assert any(f"run in a circle: {circle}. Each has the next" in message for circle in circles)


def test_two_heads_are_refused_with_both_files_and_the_edit_that_mends_it(tmp_path: Path) -> None:
    found = read(tmp_path, a=revision("1"), b=revision("2", "1"), c=revision("3", "1"), d=revision("4", "3"))
    assert found.heads == ("2", "4")
    with pytest.raises(RevisionError) as caught:
        found.single_head()
    assert "has 2 heads: b.py and d.py." in str(caught.value)
    assert 'in c.py set down_revision = "2".' in str(caught.value)


def test_checksum_of_a_file_alone_is_that_of_its_text(tmp_path: Path) -> None:
    found = read(tmp_path, a=revision("1"), b=revision("2", "1"))
    assert found.by_id["1"].checksum() == hashlib.sha256(revision("1")).hexdigest()


def test_checksum_covers_the_sql_beside_and_no_line_ends(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    texts = {"a.py": revision("1"), "a.sql": b"SELECT 1;\n"}
    first = revisions.read(write(one, texts)).by_id["1"]
    second = revisions.read(write(other, {name: text.replace(b"\n", b"\r\n") for name, text in texts.items()})).by_id[
        "1"
    ]
    assert first.checksum() == second.checksum()
    second.path.with_suffix(".sql").write_bytes(b"SELECT 2;\n")
    assert first.checksum() != second.checksum()
    assert first.title == "a"
