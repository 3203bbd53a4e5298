"""URLs: what is read is what is written, and the password is in neither message nor repr."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atriz_database.errors import SettingsError
from atriz_database.url import DatabaseURL

# Any text but NUL, which no C string holds, and surrogates, which UTF-8 has none of.
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=40)
HOSTS = st.sampled_from(
    ["localhost", "db.example.com", "10.0.0.5", "::1", "/var/run/postgresql", "@atriz", "a,b", "x%y"]
)
SECRET = "p@ss/w:rd %41#?&=+ß"
PERCENT_ENCODED = "p%40ss%2Fw%3Ard%20%2541%23%3F%26%3D%2B%C3%9F"


@given(TEXTS, TEXTS, TEXTS, HOSTS, st.integers(1, 65535))
@example("ann", SECRET, "mextrack_db", "localhost", 5432)
@example("a:b@c", "@", "/", "::1", 1)
def test_url_written_with_its_secrets_reads_as_the_same_url(
    user: str, password: str, database: str, host: str, port: int
) -> None:
    url = DatabaseURL({"user": user, "password": password, "dbname": database, "host": host, "port": str(port)})
    assert DatabaseURL.parse(url.text(secrets=True)) == url


@given(TEXTS)
def test_url_without_host_or_user_reads_as_itself(database: str) -> None:
    url = DatabaseURL({"dbname": database})
    assert DatabaseURL.parse(url.text(secrets=True)) == url


@given(st.text("abcdefgh0123456789@/:%#? ", min_size=8, max_size=40).filter(lambda text: "***" not in text))
@example(SECRET)
def test_password_is_never_shown(password: str) -> None:
    """Neither plain nor percent-encoded, by whatever way a URL becomes text."""
    url = DatabaseURL({"user": "zoe", "password": password, "dbname": "x", "host": "host", "sslpassword": password})
    hidden = DatabaseURL({"user": "zoe", "password": "-", "dbname": "x", "host": "host", "sslpassword": "-"})
    for shown, same in ((str(url), str(hidden)), (repr(url), repr(hidden)), (url.text(), hidden.text())):
        assert shown == same
        assert f"{url}" == str(url)
    assert str(url) == "postgresql://zoe:***@host/x?sslpassword=***"


@given(st.text("pqs0123456789@/:%#?[] ", min_size=1, max_size=30))
@example("p@ss")
@example("5432/p@ss")
@example("p@ss/word")
@example("@ss")
@example("pass@")
@example("pa?ss@")
def test_password_pasted_without_encoding_is_refused_or_stays_whole(password: str) -> None:
    """No tail of it ends up as the host, the port or the database's name, where it would be shown."""
    try:
        url = DatabaseURL.parse(f"postgresql://ann:{password}@host:5432/name")
    except SettingsError as error:
        text = str(error)
        same_for_all = {
            "cannot be parsed as a URL; in the user and the password write @ as %40, / as %2F, : as %3A, % as %25 and "
            "a space as %20",
            "has a port that is not a number from 1 to 65535",
        }
        assert text in same_for_all
    else:
        assert str(url) in ("postgresql://ann:***@host:5432/name", "postgresql://ann@host:5432/name")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is blank"),
        ("  \n", "is blank"),
        ("localhost:5432/mextrack_db", "is not a URL; it should look like"),
        ("host=localhost dbname=x", "is not a URL; it should look like"),
        ("mysql://h/x", "not a URL of PostgreSQL (it begins with mysql)"),
        ("postgresql+asyncpg://h/x", "it begins with postgresql+asyncpg"),
        ("ann:hunter2://h/x", "it begins with another scheme"),
        ("postgresql://h:5432", "names no database"),
        ("postgresql://h:5432/", "names no database"),
        ("postgresql://h:port/x", "port that is not a number"),
        ("postgresql://h:0/x", "port that is not a number"),
        ("postgresql://h:65536/x", "port that is not a number"),
        ("postgresql://h:²/x", "port that is not a number"),
        (f"postgresql://h:{'9' * 5000}/x", "port that is not a number"),
        ("postgresql://u:%zz@h/x", "write @ as %40"),
        ("postgresql://u:%00@h/x", "write @ as %40"),
        ("postgresql://u:%ff@h/x", "write @ as %40"),
        ("postgresql://u:a b@h/x", "a space as %20"),
        ("postgresql://u:hun@ter2@h/x", "write @ as %40"),
        ("postgresql://u:1/hun@h/x", "write @ as %40"),
        ("postgresql://h/x?colour=red", "cannot be parsed"),
        ("postgresql://[::1/x", "cannot be parsed"),
    ],
)
def test_bad_url_is_refused_with_words_that_help(text: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        DatabaseURL.parse(text)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "hun" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u@h/x",
        "postgres://u@h/x",
        "postgresql+psycopg://u@h/x",
        "POSTGRESQL://u@h/x",
        "  postgresql://u@h/x\n",
    ],
)
def test_every_way_to_name_postgresql_is_the_same_url(text: str) -> None:
    assert str(DatabaseURL.parse(text)) == "postgresql://u@h/x"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql://h/x", "postgresql://h:5432/x", True),
        ("postgresql://ann:a@h/x", "postgresql://bob:b@h/x", True),
        ("postgresql://H.example/x", "postgresql://h.EXAMPLE/x", True),
        ("postgresql://localhost/x", "postgresql://127.0.0.1/x", True),
        ("postgresql://localhost/x", "postgresql://[::1]/x", True),
        ("postgresql:///x", "postgresql://localhost/x", True),
        ("postgresql://h/x?sslmode=require", "postgresql://h/x", True),
        ("postgresql://h/x?hostaddr=10.0.0.5", "postgresql://10.0.0.5/x", True),
        ("postgresql:///x?host=/tmp", "postgresql://%2Ftmp/x", True),
        ("postgresql://h/x", "postgresql://h/y", False),
        ("postgresql://h/x", "postgresql://h/X", False),
        ("postgresql://h/x", "postgresql://h:5433/x", False),
        ("postgresql://h/x", "postgresql://i/x", False),
        ("postgresql:///x?host=/tmp", "postgresql:///x?host=/run", False),
        ("postgresql:///x?service=live", "postgresql:///x?service=test", False),
    ],
)
def test_place_tells_databases_apart_whoever_signs_in(one: str, other: str, same: bool) -> None:
    assert (DatabaseURL.parse(one).place == DatabaseURL.parse(other).place) is same


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("postgresql:///x", True),
        ("postgresql://localhost/x", True),
        ("postgresql://127.0.0.1/x", True),
        ("postgresql://127.8.8.8/x", True),
        ("postgresql://[::1]/x", True),
        ("postgresql:///x?host=/var/run/postgresql", True),
        ("postgresql:///x?host=@atriz", True),
        ("postgresql://localhost,127.0.0.1/x", True),
        ("postgresql://db.example.com/x", False),
        ("postgresql://10.0.0.5/x", False),
        ("postgresql://localhost,db.example.com/x", False),
        ("postgresql://localhost/x?hostaddr=10.0.0.5", False),
        ("postgresql://db.example.com/x?hostaddr=127.0.0.1", True),
        ("postgresql://localhost.example.com/x", False),
        ("postgresql:///x?service=live", False),
    ],
)
def test_server_is_local_by_socket_or_loopback_only(text: str, local: bool) -> None:
    assert DatabaseURL.parse(text).is_local is local


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"host": "/run/pg", "port": "6432"}, "postgresql:///x?host=/run/pg&port=6432"),
        ({"host": "/run/pg", "user": "ann"}, "postgresql://ann@/x?host=/run/pg"),
        ({"host": "@atriz"}, "postgresql:///x?host=%40atriz"),
        ({"host": "a,b", "port": "1,2"}, "postgresql:///x?host=a%2Cb&port=1%2C2"),
        ({"host": "::1", "port": "6432"}, "postgresql://[::1]:6432/x"),
        ({"host": "a/b"}, "postgresql://a%2Fb/x"),
        ({"port": "6432"}, "postgresql://:6432/x"),
        ({"password": SECRET}, "postgresql://:***@/x"),
    ],
)
def test_url_is_shown_in_the_form_that_people_know(parameters: dict[str, str], text: str) -> None:
    assert str(DatabaseURL({**parameters, "dbname": "x"})) == text


def test_another_database_on_the_same_server_keeps_everything_else() -> None:
    url = DatabaseURL.parse(f"postgresql://ann:{PERCENT_ENCODED}@h:6432/x?sslmode=require").with_database("y/z")
    assert url.database == "y/z"
    assert url.parameters["password"] == SECRET
    assert str(url) == "postgresql://ann:***@h:6432/y%2Fz?sslmode=require"


def test_url_can_be_sent_to_another_process_and_copied() -> None:
    url = DatabaseURL.parse(f"postgresql://ann:{PERCENT_ENCODED}@h/x")
    assert pickle.loads(pickle.dumps(url)) == url
    assert copy.deepcopy(url) == url


def test_url_does_not_change_with_the_mapping_it_was_made_of() -> None:
    parameters = {"dbname": "x"}
    url = DatabaseURL(parameters)
    parameters["dbname"] = "y"
    assert url.database == "x"
    with pytest.raises(TypeError):
        url.parameters["dbname"] = "z"  # type: ignore[index]


def test_pooler_is_an_option_of_ours_that_libpq_never_hears_of() -> None:
    """It is kept through all that is done to a URL; another value is refused."""
    text = "postgresql://ann@here/db?sslmode=require&pooler=transaction"
    url = DatabaseURL.parse(text)
    assert (url.pooler, "pooler" in url.parameters) == ("transaction", False)
    assert url.text() == text
    assert DatabaseURL.parse(url.text()) == url == pickle.loads(pickle.dumps(url))
    assert url.with_database("other").pooler == "transaction"
    assert url != DatabaseURL.parse("postgresql://ann@here/db?sslmode=require")
    assert DatabaseURL.parse("postgresql:///db?pooler=transaction").parameters == {"dbname": "db"}
    with pytest.raises(SettingsError, match="pooler that is not known; pooler=transaction is for PgBouncer"):
        DatabaseURL.parse("postgresql://here/db?pooler=session")
