"""`atriz env`: what it shows, what it writes, what it never touches."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st
from tree import Tree

from atriz_database import settings

_PASSWORD = "it's a p@ss\\w%rd"
_ENVIRON = {"PGHOST": "db.example.com", "PGPORT": "6000", "PGUSER": "team", "PGPASSWORD": _PASSWORD}


def test_write_makes_what_is_missing_and_reads_back_the_same(fleet: Tree) -> None:
    """After it, the files alone lead to the same databases; only their owner can read them."""
    fleet.environ = {name: value for name, value in fleet.environ.items() if not name.startswith("PG")}
    done = fleet.atriz("env", "--write", **_ENVIRON)
    assert done.returncode == 0, done.stderr
    assert "apps/left/.env: made, with APP_ENV, SHARED_DATABASE_URL, DATABASE_URL" in done.stdout
    assert "w%rd" not in done.stdout
    for path in (fleet.root / ".env", fleet.folders["left"] / ".env"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    target = fleet.target("left")
    assert target.url is not None
    assert dict(target.url.parameters) == {
        "host": "db.example.com",
        "port": "6000",
        "user": "team",
        "password": _PASSWORD,
        "dbname": fleet.database("left"),
    }
    assert "lacks nothing" in fleet.atriz("env", "--write", "left").stdout


def test_write_never_changes_a_value_that_is_there(fleet: Tree) -> None:
    """A file keeps its lines, comments and order; what it lacks is added below."""
    path = fleet.folders["left"] / ".env"
    before = "# mine\nDATABASE_URL='postgresql://me@elsewhere/mine'"
    path.write_text(before)
    assert fleet.atriz("env", "--write", "left").returncode == 0
    assert path.read_text().startswith(before + "\n")
    assert "APP_ENV=development" in path.read_text()


def test_write_keeps_the_embedded_server_in_force(fleet: Tree) -> None:
    """Neither a URL nor PG* is written for it."""
    if settings.named_server(fleet.environ) is not None:
        fleet.environ = {name: value for name, value in fleet.environ.items() if not name.startswith("PG")}
        fleet.environ["ATRIZ_SERVER_HOME"] = str(fleet.root / "nowhere")
    assert fleet.atriz("env", "--write").returncode == 0
    assert (fleet.folders["left"] / ".env").read_text() == "APP_ENV=development\n"
    assert not (fleet.root / ".env").exists()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=30))
def test_whatever_is_written_is_read_back(tmp_path_factory, value: str) -> None:
    """Quotes, backslashes, line ends, anything."""
    from atriz_database.verbs.origins import _add

    path = tmp_path_factory.mktemp("env") / ".env"
    _add(path, {"NAME": value})
    assert settings.read_file(path)["NAME"].text == value
