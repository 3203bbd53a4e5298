"""Sign-in over HTTP: the endpoints, the dependencies, and what a client is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import DBAPIError

from atriz_core import web
from atriz_core.accounts import Accounts
from atriz_database import Database
from atriz_database.url import DatabaseURL

AddUser = Callable[..., UUID]
EMAIL = "ada@example.com"
NEW = "another horse battery staple"


@pytest.fixture
def client(accounts: Accounts) -> Iterator[TestClient]:
    """Yield a client of an app with sign-in and two endpoints of its own."""
    app = FastAPI()
    web.install(app, accounts)

    @app.get("/own")
    def own(user: web.CurrentUser) -> str:
        return user.email

    @app.get("/admins", dependencies=[web.require_role("admin")])
    async def admins() -> str:
        return "here"

    @app.get("/tables", responses=web.problems(401))
    def tables(user: web.CurrentUser, statement: str) -> int:
        return len(accounts.database.query(statement, number=1234567))

    @app.post("/upload")
    def upload(text: dict[str, str]) -> int:
        return len(text["text"])

    with TestClient(app, client=("203.0.113.9", 50000)) as made:
        yield made


def bearer(token: str) -> dict[str, str]:
    """Return the header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


def sign_in(client: TestClient, password: str) -> dict[str, Any]:
    """Return the tokens of a sign-in."""
    answer = client.post("/auth/login", json={"email": EMAIL, "password": password})
    assert answer.status_code == 200
    return answer.json()


def test_from_registering_to_signing_out(client: TestClient, outbox: Any) -> None:
    """The whole way of somebody new: register, verify, sign in, be known, refresh, sign out."""
    answer = client.post("/auth/register", json={"email": EMAIL, "password": NEW, "name": "Ada"})
    assert answer.status_code == 202
    assert client.post("/auth/login", json={"email": EMAIL, "password": NEW}).status_code == 401
    token = outbox.last("verify").token
    assert client.post("/auth/verify-email", json={"token": token}).status_code == 204
    assert client.post("/auth/verify-email", json={"token": token}).status_code == 400
    made = sign_in(client, NEW)
    assert (made["token_type"], made["expires_in"]) == ("bearer", 900)
    made = client.post("/auth/refresh", json={"refresh_token": made["refresh_token"]}).json()
    me = client.get("/auth/me", headers=bearer(made["access_token"])).json()
    assert (me["email"], me["name"], me["roles"]) == (EMAIL, "Ada", [])
    assert client.get("/own", headers=bearer(made["access_token"])).json() == EMAIL
    assert client.post("/auth/logout", headers=bearer(made["access_token"])).status_code == 204
    assert client.get("/auth/me", headers=bearer(made["access_token"])).status_code == 401
    assert client.post("/auth/refresh", json={"refresh_token": made["refresh_token"]}).status_code == 401


def test_sign_out_everywhere(client: TestClient, add_user: AddUser, password: str) -> None:
    """`?everywhere=true` ends the other sign-ins, which a plain one leaves."""
    add_user()
    first, second, third = (sign_in(client, password)["access_token"] for _ in range(3))
    client.post("/auth/logout", headers=bearer(first))
    assert client.get("/own", headers=bearer(second)).status_code == 200
    client.post("/auth/logout?everywhere=true", headers=bearer(second))
    assert client.get("/own", headers=bearer(third)).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer a.b.c"},
        {"Authorization": "Bearer " + "a" * 10_000},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Cookie": "access_token=a.b.c"},
    ],
)
def test_without_a_good_token_nobody_is_in(client: TestClient, headers: dict[str, str]) -> None:
    """401 with the challenge that RFC 6750 asks for, wherever somebody has to be signed in."""
    for path in ("/own", "/admins", "/auth/me"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == 401


def test_token_in_the_query_is_none(client: TestClient, add_user: AddUser, password: str) -> None:
    """A token in the URL, which logs keep, is not looked at."""
    add_user()
    token = sign_in(client, password)["access_token"]
    assert client.get(f"/own?access_token={token}&token={token}").status_code == 401


def test_role_is_asked_for(client: TestClient, accounts: Accounts, add_user: AddUser, password: str) -> None:
    """Who lacks a role gets 403, who has it is let through, an async endpoint too; who is nobody gets 401."""
    add_user()
    headers = bearer(sign_in(client, password)["access_token"])
    assert client.get("/admins", headers=headers).status_code == 403
    accounts.database.execute("INSERT INTO user_roles (user_id, role_id) SELECT u.id, r.id FROM users u, roles r")
    assert client.get("/admins", headers=headers).json() == "here"


def test_failures_are_told_alike(client: TestClient, add_user: AddUser, password: str) -> None:
    """An address that is known and one that is not get the same answer, to the letter, from each endpoint."""
    add_user()
    for path, more in (
        ("/auth/login", {"password": "not the password"}),
        ("/auth/register", {"password": NEW, "name": "Mallory"}),
        ("/auth/reset-password", {}),
    ):
        answers = [client.post(path, json={"email": email, **more}) for email in (EMAIL, "nobody@example.com")]
        known, unknown = ((each.status_code, each.content, sorted(each.headers.items())) for each in answers)
        assert known == unknown


def test_reset_answers_before_mail_is_sent(client: TestClient, accounts: Accounts, add_user: AddUser) -> None:
    """Sending takes its time, and only those get a mail who have an account: whoever asks does not wait for it."""
    add_user()
    order: list[str] = []

    class Slow:
        def send(self, message: object) -> None:
            order.append("sent")

    accounts._mail = Slow()
    original = client.app

    async def watching(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                order.append("answered")
            await send(message)

        await original(scope, receive, sending)  # type: ignore[operator]

    with TestClient(watching) as watched:
        assert watched.post("/auth/reset-password", json={"email": EMAIL}).status_code == 202
    assert order == ["answered", "sent"]


def test_password_is_reset_and_changed(client: TestClient, add_user: AddUser, password: str, outbox: Any) -> None:
    """By mail, and with the old one; what cannot be taken is 422, a spent token 400, a wrong old password 401."""
    add_user()
    client.post("/auth/reset-password", json={"email": EMAIL})
    token = outbox.last("reset").token
    confirm = "/auth/reset-password/confirm"
    assert client.post(confirm, json={"token": token, "password": "short"}).status_code == 422
    assert client.post(confirm, json={"token": token, "password": NEW}).status_code == 204
    assert client.post(confirm, json={"token": token, "password": NEW}).status_code == 400
    headers = bearer(sign_in(client, NEW)["access_token"])
    change = "/auth/change-password"
    body = {"old_password": "not the password", "new_password": password}
    assert client.post(change, json=body, headers=headers).status_code == 401
    assert client.post(change, json={**body, "old_password": NEW}, headers=headers).status_code == 204
    assert client.get("/own", headers=headers).status_code == 401
    assert sign_in(client, password)


def test_guesser_is_told_how_long_to_wait(client: TestClient, add_user: AddUser, password: str) -> None:
    """429 with Retry-After; a header that the client writes makes no other client of it."""
    add_user()
    for number in range(6):
        answer = client.post(
            "/auth/login",
            json={"email": EMAIL, "password": "not the password"},
            headers={"X-Forwarded-For": f"198.51.100.{number}", "Forwarded": f"for=198.51.100.{number}"},
        )
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) >= 1
    assert client.post("/auth/login", json={"email": EMAIL, "password": password}).status_code == 429


def test_answers_are_kept_by_no_cache(client: TestClient, add_user: AddUser, password: str) -> None:
    """Tokens, and that there are none, are not kept."""
    add_user()
    good = client.post("/auth/login", json={"email": EMAIL, "password": password})
    bad = client.post("/auth/login", json={"email": EMAIL, "password": "not the password"})
    odd = client.post("/auth/login", json={"email": EMAIL})
    assert {each.headers["Cache-Control"] for each in (good, bad, odd)} == {"no-store"}


@pytest.mark.parametrize(
    "body",
    [
        {"email": EMAIL, "password": ["the-secret-word"]},
        {"email": EMAIL, "passwort": "the-secret-word"},
        {"email": {"the-secret-word": 1}, "password": None},
        ["the-secret-word"],
        "the-secret-word",
    ],
)
def test_what_was_sent_is_not_repeated(client: TestClient, body: object) -> None:
    """A body of another form is 422, which says where, and never holds what was there: it may be a password."""
    answer = client.post("/auth/login", json=body)
    assert answer.status_code == 422
    assert "the-secret-word" not in answer.text
    assert "body" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"email": 1}', "email in the body should be a valid string; password is missing in the body"),
        (b'{"email": ', "the body is not JSON"),
        (b"[1]", "the body should be a JSON object, sent as application/json"),
        (b"", "the body should be a JSON object, sent as application/json"),
    ],
)
def test_body_that_cannot_be_taken_is_told_in_words(client: TestClient, content: bytes, says: str) -> None:
    """What is asked for, in one sentence."""
    answer = client.post("/auth/login", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"The request cannot be taken: {says}."


def test_no_is_told_with_what_to_do(client: TestClient, add_user: AddUser, password: str) -> None:
    """No token, one that is not good, a wrong old password and a mail that is spent each have a text of their own."""
    add_user()
    for headers in ({}, {"Authorization": "Basic YTpi"}):
        answer = client.get("/own", headers=headers)
        assert "Authorization: Bearer" in answer.json()["detail"]
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    answer = client.get("/own", headers=bearer("a.b.c"))
    assert "Sign in again" in answer.json()["detail"]
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    headers = bearer(sign_in(client, password)["access_token"])
    body = {"old_password": "not the password", "new_password": NEW}
    answer = client.post("/auth/change-password", json=body, headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (401, "The old password is not right.")
    for path, body in (("verify-email", {}), ("reset-password/confirm", {"password": NEW})):
        answer = client.post(f"/auth/{path}", json={"token": "spent", **body})
        assert answer.status_code == 400
        assert "Ask for a new mail" in answer.json()["detail"]


ASKING: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("POST", "/auth/login", {"email": EMAIL, "password": NEW}),
    ("POST", "/auth/register", {"email": EMAIL, "password": NEW, "name": "Ada"}),
    ("POST", "/auth/reset-password", {"email": EMAIL}),
    ("POST", "/auth/refresh", {"refresh_token": "spent"}),
    ("GET", "/auth/me", {}),
    ("GET", "/own", {}),
)


@pytest.mark.parametrize("how", ["missing", "behind", "unreachable"])
def test_database_that_cannot_be_used_is_unavailable(
    client: TestClient,
    accounts: Accounts,
    add_user: AddUser,
    password: str,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """503 from every endpoint, and one line in the log with the cause and without what was sent."""
    add_user()
    headers = bearer(sign_in(client, password)["access_token"])
    good = accounts.database
    if how == "behind":
        good.execute("ALTER SCHEMA auth RENAME TO once")
    else:
        change = {"dbname": "not_there"} if how == "missing" else {"host": "127.0.0.1", "port": "1"}
        url = DatabaseURL({**good.url.parameters, **change})
        accounts.database = Database(url, name="core", production=False)
    try:
        for method, path, body in ASKING:
            caplog.clear()
            answer = client.request(method, path, json=body or None, headers=headers)
            assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/problem+json")
            assert answer.json()["status"] == 503
            (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("atriz")]
            assert line.startswith(f"{method} {path}: the database ")
            assert "\n" not in line
            assert EMAIL not in line
            assert ("`atriz migrate`" if how == "behind" else "`atriz status`") in line
    finally:
        if accounts.database is not good:
            accounts.database.close()


def test_defect_is_not_taken_for_a_database_that_is_down(
    client: TestClient, add_user: AddUser, password: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An app's own wrong statement is an error of the app, but for a table that is not there, which may come yet."""
    add_user()
    headers = bearer(sign_in(client, password)["access_token"])
    with pytest.raises(DBAPIError):
        client.get("/tables", params={"statement": "SELECT :number / 0"}, headers=headers)
    caplog.clear()
    answer = client.get("/tables", params={"statement": "SELECT :number FROM not_there"}, headers=headers)
    assert answer.status_code == 503
    assert 'relation "not_there" does not exist' in caplog.text
    assert "1234567" not in caplog.text


def test_description_lists_the_problems(client: TestClient) -> None:
    """OpenAPI says of each endpoint which answers are problems, and in what form."""
    paths = client.get("/openapi.json").json()["paths"]
    for path, method, statuses in (
        ("/auth/login", "post", {"200", "401", "413", "422", "429", "503"}),
        ("/auth/me", "get", {"200", "401", "503"}),
        ("/tables", "get", {"200", "401", "422", "503"}),
    ):
        answers = paths[path][method]["responses"]
        assert answers.keys() == statuses
        assert list(answers["503"]["content"]) == ["application/problem+json"]
        assert "detail" in answers["503"]["content"]["application/problem+json"]["schema"]["properties"]


def test_long_bodies_are_refused(client: TestClient, accounts: Accounts) -> None:
    """A password of a megabyte is turned away, whether its length is told or not; elsewhere nothing is limited."""
    accounts.close()  # nobody is asked
    body = b'{"email": "ada@example.com", "password": "' + b"x" * 1_000_000 + b'"}'

    def parts() -> Iterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    for content in (body, parts()):
        answer = client.post("/auth/login", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
    assert client.post("/upload", json={"text": "x" * 1_000_000}).json() == 1_000_000


def test_long_bodies_are_refused_where_the_app_is_mounted_too(client: TestClient) -> None:
    """Below another path the limit holds as well; what only begins like ours is not ours."""
    outer = FastAPI()
    outer.mount("/api", client.app)

    @outer.post("/authors")
    def authors(text: dict[str, str]) -> int:
        return len(text["text"])

    web.install(outer, client.app.state.accounts)  # type: ignore[attr-defined]
    with TestClient(outer) as mounted:
        long = {"email": EMAIL, "password": "x" * 1_000_000}
        assert mounted.post("/api/auth/login", json=long).status_code == 413
        assert mounted.post("/auth/login", json=long).status_code == 413
        assert mounted.post("/api/auth/login", json={"email": EMAIL, "password": "x"}).status_code == 401
        assert mounted.post("/authors", json={"text": "x" * 100_000}).json() == 100_000


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"null", b"[" * 5000, b'{"email": "\\ud800", "password": "x"}']
)
def test_rubbish_is_no_error_of_ours(client: TestClient, content: bytes) -> None:
    """What is no JSON, or no text, is a client's mistake."""
    for path in ("/auth/login", "/auth/register", "/auth/refresh", "/auth/verify-email", "/auth/reset-password"):
        answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 401, 422), path


def test_package_needs_no_fastapi() -> None:
    """Whoever uses accounts without the web has not to install it: nothing but `web` and `application` loads it."""
    program = (
        "import sys; sys.modules['fastapi'] = None; import atriz_core.accounts, atriz_core.verbs, atriz_core.roles; "
        "assert not [name for name in sys.modules if name.startswith(('starlette', 'pydantic'))]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
