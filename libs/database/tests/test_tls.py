"""Encrypted connections: to a real server with certificates made for the test, and refused without in production."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import debian
import pytest
import second
import trustme
import worlds
from second import Second
from sqlalchemy.exc import OperationalError
from tree import Tree
from worlds import World

from atriz_database import Database
from atriz_database.errors import SettingsError

HOST = "db.example.com"
_MODES_THAT_FALL_BACK = ["", "allow", "prefer"]


@dataclass(frozen=True)
class Encrypted:
    """A server with a certificate for `HOST`, and the files of two authorities."""

    server: Second
    authority: Path
    """Who signed the server's certificate."""
    stranger: Path
    """Who did not."""

    def url(self, host: str = HOST, *, authority: Path | None = None, **parameters: str) -> str:
        """Return a URL that calls the server by a name, wherever that leads."""
        given = {"hostaddr": "127.0.0.1", **parameters}
        if authority is not None:
            given["sslrootcert"] = str(authority)
        query = "&".join(f"{key}={quote(value, safe='/')}" for key, value in given.items())
        password = quote(self.server.password, safe="")
        return f"postgresql://{self.server.user}:{password}@{host}:{self.server.port}/postgres?{query}"


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """Yield Debian's PostgreSQL with TLS: the embedded one is built without."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    program = debian.program(
        "postgresql", "usr/lib/postgresql/*/bin/postgres", installed=installed[-1] if installed else None
    )
    folder = tmp_path_factory.mktemp("certificates")
    authority, stranger = trustme.CA(), trustme.CA()
    for name, each in (("authority", authority), ("stranger", stranger)):
        each.cert_pem.write_to_path(folder / name)
    certificate = authority.issue_cert(HOST)
    files = {
        "server.crt": b"".join(each.bytes() for each in certificate.cert_chain_pems),
        "server.key": certificate.private_key_pem.bytes(),
    }
    with second.running(program=program, settings={"ssl": "on"}, files=files) as server:
        yield Encrypted(server, folder / "authority", folder / "stranger")


@pytest.mark.gate
@worlds.both
@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_a_connection_is_encrypted(world: World, encrypted: Encrypted, mode: str) -> None:
    """The server says so itself, for each mode that does not fall back."""
    authority = None if mode == "require" else encrypted.authority
    db = world.open(encrypted.url(sslmode=mode, authority=authority), production=True)
    assert db.query("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True, "TLSv1.3")]


@pytest.mark.gate
@worlds.both
def test_encrypted_connections_are_pooled_like_others(world: World, encrypted: Encrypted) -> None:
    """What TLS leaves in the socket is not taken for the end of a connection: one backend answers all."""
    db = world.open(encrypted.url(sslmode="verify-full", authority=encrypted.authority), pool_size=1)
    assert len({tuple(db.query("SELECT pg_backend_pid()")) for _ in range(10)}) == 1


@pytest.mark.gate
@worlds.both
def test_verify_full_refuses_another_hosts_certificate(world: World, encrypted: Encrypted) -> None:
    """The certificate's name and the URL's are both told; verify-ca lets it pass."""
    wrong = {"host": "other.example.com", "authority": encrypted.authority}
    db = world.open(encrypted.url(**wrong, sslmode="verify-full"))  # type: ignore[arg-type]
    with pytest.raises(
        OperationalError, match=rf'certificate for "{HOST}" does not match host name "other\.example\.com"'
    ):
        db.query("SELECT 1")
    assert (db.pool.in_use, db.pool.open) == (0, 0)
    assert world.open(encrypted.url(**wrong, sslmode="verify-ca")).query("SELECT 1") == [(1,)]  # type: ignore[arg-type]


@pytest.mark.gate
@worlds.both
@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_an_unknown_authority_is_refused(world: World, encrypted: Encrypted, mode: str) -> None:
    """A certificate that somebody else has signed is not trusted; require does not ask who it was."""
    db = world.open(encrypted.url(sslmode=mode, authority=encrypted.stranger))
    with pytest.raises(OperationalError, match="certificate verify failed"):
        db.query("SELECT 1")
    assert (db.pool.in_use, db.pool.open) == (0, 0)
    assert world.open(encrypted.url(sslmode="require")).query("SELECT 1") == [(1,)]


@pytest.mark.gate
@worlds.both
def test_a_missing_file_of_the_authority_is_named(world: World, encrypted: Encrypted, tmp_path: Path) -> None:
    """Nothing is trusted where the file to trust by is not there."""
    db = world.open(encrypted.url(sslmode="verify-full", authority=tmp_path / "absent.pem"))
    with pytest.raises(OperationalError, match=r"absent\.pem"):
        db.query("SELECT 1")


@worlds.both
def test_a_server_without_tls_is_refused_where_it_is_required(world: World) -> None:
    """The embedded server's programs have no TLS."""
    with second.running() as server:
        db = world.open(server.url(sslmode="require"))
        with pytest.raises(OperationalError, match="server does not support SSL, but SSL was required"):
            db.query("SELECT 1")
        assert (db.pool.in_use, db.pool.open) == (0, 0)


@worlds.both
@pytest.mark.parametrize("mode", _MODES_THAT_FALL_BACK)
def test_production_refuses_what_may_go_without_tls(world: World, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the argument and by APP_ENV, with the next step and without the password."""
    monkeypatch.delenv("PGSSLMODE", raising=False)
    url = f"postgresql://ann:secret@{HOST}/mextrack_db" + (f"?sslmode={mode}" if mode else "")
    with pytest.raises(SettingsError, match=r"Add sslmode=verify-full .* say so with sslmode=disable") as refused:
        world.open(url, production=True)
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("APP_ENV", "production")
    with pytest.raises(SettingsError, match="without TLS"):
        world.open(url)
    world.open(url, production=False)


@worlds.both
@pytest.mark.parametrize("mode", ["disable", "require", "verify-ca", "verify-full"])
def test_production_takes_what_was_decided(world: World, mode: str) -> None:
    """Encrypted, or without TLS because the URL says so; and whatever it is on this machine."""
    world.open(f"postgresql://ann@{HOST}/mextrack_db?sslmode={mode}", production=True)
    for host in ("localhost", "127.0.0.1", "[::1]"):
        world.open(f"postgresql://ann@{host}/mextrack_db", production=True)
    world.open("postgresql:///mextrack_db?host=/run/postgresql", production=True)


@pytest.mark.parametrize("verb", ["status", "migrate", "check"])
def test_verbs_refuse_it_too(tree: Tree, verb: str) -> None:
    """Status 2, the variable's name, and nobody is asked on the network."""
    tree.add("core")
    url = f"postgresql://ann:secret@{HOST}/{tree.database('core')}"
    done = tree.atriz(verb, APP_ENV="production", SHARED_DATABASE_URL=url)
    assert done.returncode == 2
    assert "SHARED_DATABASE_URL in the process environment" in done.stderr
    assert "without TLS" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    tree.folders.clear()


@pytest.mark.gate
def test_verbs_reach_an_encrypted_server_in_production(tree: Tree, encrypted: Encrypted) -> None:
    """With TLS, and without it where the URL says that it is meant."""
    tree.add("core")
    folder = tree.folders.pop("core")
    for parameters in ({"sslmode": "verify-full", "sslrootcert": str(encrypted.authority)}, {"sslmode": "disable"}):
        url = encrypted.url(**parameters).replace("/postgres?", f"/{tree.database('core')}?")
        done = tree.atriz("status", APP_ENV="production", SHARED_DATABASE_URL=url)
        assert "missing" in done.stdout, (folder, done.stderr)


def test_an_application_in_an_image_refuses_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no workspace, and the process environment alone says where the database is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PGSSLMODE", raising=False)
    monkeypatch.setenv("APP_ENV", "production")
    monkeypatch.setenv("MEXTRACK_DATABASE_URL", f"postgresql://ann@{HOST}/mextrack_db")
    with pytest.raises(SettingsError, match="MEXTRACK_DATABASE_URL in the process environment"):
        Database.from_environment("mextrack")
    monkeypatch.setenv("MEXTRACK_DATABASE_URL", f"postgresql://ann@{HOST}/mextrack_db?sslmode=require")
    Database.from_environment("mextrack").close()
