"""One sign-in for all apps: a bearer token of one is good in each, and after signing out in none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from atriz_core import users
from atriz_core.accounts import Accounts, Policy
from atriz_core.mail import ConsoleMail
from atriz_core.passwords import Cost, Hasher
from atriz_core.tokens import Keys
from atriz_database import Database, workspace

ROOT = Path(__file__).parent.parent
# An endpoint of each app's own that says who asks.
OWN = {"atriz": "/profile", "mextrack": "/vehicles", "pshop": "/sales"}
MODULES = {"atriz": "atriz_website.web", "mextrack": "mextrack.web", "pshop": "pshop.web"}
EMAIL = "chiara@example.com"
PASSWORD = "correct horse battery staple"
Clients = Mapping[str, TestClient]


@pytest.fixture
def fleet(_clones: Any) -> Iterator[Mapping[str, Database]]:
    """Yield a seeded database of each package."""
    with ExitStack() as stack:
        made = {}
        for package in workspace.load(ROOT).packages:
            target = _clones.make(package, seeded=True)
            stack.callback(_clones.drop, target)
            made[package.name] = stack.enter_context(Database(target.url, name=package.name, production=False))
        yield made


@pytest.fixture
def clients(fleet: Mapping[str, Database]) -> Iterator[Clients]:
    """Yield a client of each app, each app with accounts of its own on the shared database, as in processes."""
    keys, cost = Keys.parse("k:" + "k" * 32), Cost(1, 8, 1)
    with psycopg.connect(fleet["core"].url.text(secrets=True), autocommit=True) as connection:
        users.set_password(connection, EMAIL, Hasher(cost).hash(PASSWORD))
    with ExitStack() as stack:
        made = {}
        for name, module in MODULES.items():
            shared = stack.enter_context(Database(fleet["core"].url, name=f"core for {name}", production=False))
            accounts = Accounts(shared, keys, ConsoleMail(), Policy(cost=cost))
            app = import_module(module).create_app(accounts=accounts, database=fleet[name])
            made[name] = stack.enter_context(TestClient(app))
        yield made


def sign_in(clients: Clients, name: str) -> dict[str, str]:
    """Sign in to an app, and return the header that shows the access token."""
    answer = clients[name].post("/auth/login", json={"email": EMAIL, "password": PASSWORD})
    assert answer.status_code == 200
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def statuses(clients: Clients, headers: dict[str, str]) -> set[int]:
    """Return what all apps answer, at their own endpoint and at ``/auth/me``."""
    return {
        client.get(path, headers=headers).status_code
        for name, client in clients.items()
        for path in (OWN[name], "/auth/me")
    }


@pytest.mark.parametrize("signed_in_to", OWN)
def test_one_token_is_good_in_every_app(clients: Clients, signed_in_to: str) -> None:
    """Whichever app one signs in to, all know who it is, and show what is theirs."""
    headers = sign_in(clients, signed_in_to)
    assert statuses(clients, headers) == {200}
    me = {client.get("/auth/me", headers=headers).text for client in clients.values()}
    assert len(me) == 1
    user_id = clients["atriz"].get("/auth/me", headers=headers).json()["id"]
    assert clients["atriz"].get("/profile", headers=headers).json()["user_id"] == user_id
    for name in ("mextrack", "pshop"):
        found = clients[name].get(OWN[name], headers=headers).json()
        assert found
        assert {each["user_id"] for each in found} == {user_id}


def _sign_out(clients: Clients, fleet: Mapping[str, Database], headers: dict[str, str]) -> None:
    assert clients["pshop"].post("/auth/logout", headers=headers).status_code == 204


def _sign_out_everywhere(clients: Clients, fleet: Mapping[str, Database], headers: dict[str, str]) -> None:
    # From another sign-in.
    other = sign_in(clients, "atriz")
    assert clients["atriz"].post("/auth/logout?everywhere=true", headers=other).status_code == 204


def _deactivate(clients: Clients, fleet: Mapping[str, Database], headers: dict[str, str]) -> None:
    with psycopg.connect(fleet["core"].url.text(secrets=True), autocommit=True) as connection:
        users.deactivate(connection, EMAIL)


@pytest.mark.parametrize("end", [_sign_out, _sign_out_everywhere, _deactivate])
def test_one_end_is_the_end_in_every_app(
    clients: Clients, fleet: Mapping[str, Database], end: Callable[..., None]
) -> None:
    """Signed out in one app, everywhere, or deactivated: from the next request on every app says no."""
    headers = sign_in(clients, "mextrack")
    assert statuses(clients, headers) == {200}
    end(clients, fleet, headers)
    assert statuses(clients, headers) == {401}


def test_role_holds_in_every_app_at_once(clients: Clients, fleet: Mapping[str, Database]) -> None:
    """Chiara is manager in mextrack and pshop; without the role he is let in no more, with the token that he has."""
    headers = sign_in(clients, "atriz")
    paths = {"mextrack": "/fleet", "pshop": "/stock"}
    assert {clients[name].get(path, headers=headers).status_code for name, path in paths.items()} == {200}
    fleet["core"].execute("DELETE FROM user_roles")
    assert {clients[name].get(path, headers=headers).status_code for name, path in paths.items()} == {403}


def test_people_see_what_is_their_own(clients: Clients, fleet: Mapping[str, Database]) -> None:
    """A profile that is put is one's own, whoever else has one; without a token there is nothing to see."""
    headers = sign_in(clients, "atriz")
    others = fleet["atriz"].query("SELECT row(p.*)::text FROM user_profiles p WHERE display_name NOT LIKE 'Chiara%'")
    put = clients["atriz"].put("/profile", json={"display_name": " B. ", "bio": "Here."}, headers=headers)
    assert (put.status_code, put.json()["display_name"]) == (200, "B.")
    assert clients["atriz"].put("/profile", json={"display_name": "  "}, headers=headers).status_code == 422
    left = fleet["atriz"].query("SELECT row(p.*)::text FROM user_profiles p WHERE display_name <> 'B.'")
    assert left == others
    fleet["atriz"].execute("DELETE FROM user_profiles")
    assert clients["atriz"].get("/profile", headers=headers).status_code == 404
    assert statuses(clients, {}) == {401}
