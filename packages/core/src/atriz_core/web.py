"""Sign-in for FastAPI: endpoints below ``/auth``, and dependencies for an app's own.

    app = FastAPI()
    web.install(app, accounts)

    @app.get("/vehicles")
    def vehicles(user: web.CurrentUser) -> …: …

    @app.delete("/vehicles/{id}", dependencies=[web.require_role("manager")])

Plain ``def`` throughout: FastAPI runs them in threads, where hashing a password stops nobody else. An app with
``async`` endpoints can depend on them all the same. Needs the extra ``web``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atriz_core import addresses, unavailable
from atriz_core.accounts import Accounts, Identity, Tokens
from atriz_core.errors import AccountError, InputError, MailTokenError, ThrottledError, TokenError

PREFIX = "/auth"
MOST_BYTES = 16 * 1024
"""How long the body of a request to these endpoints may be."""
_PROBLEM = "application/problem+json"
_LOG = logging.getLogger(__name__)
_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    413: "Content Too Large",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    503: "Service Unavailable",
}


def install(app: FastAPI, accounts: Accounts) -> None:
    """Give an app the endpoints, what the dependencies need, and answers for the errors.

    :param accounts: closed by whoever made it.
    """
    app.state.accounts = accounts
    app.include_router(router)
    app.add_middleware(BodyLimit)
    app.add_exception_handler(AccountError, _answer)
    for kind in unavailable.ERRORS:
        app.add_exception_handler(kind, _answer_unavailable)


class _NobodyError(TokenError):
    """A request shows no token."""

    def __init__(self) -> None:
        super().__init__("Sign in, and show the access token: Authorization: Bearer TOKEN.")


class RoleError(AccountError):
    """Whoever is signed in lacks a role."""

    def __init__(self, role: str) -> None:
        super().__init__(f"This takes the role {role}.")


def get_accounts(request: Request) -> Accounts:
    """Return the accounts that :func:`install` was given."""
    accounts: Accounts = request.app.state.accounts
    return accounts


_Accounts = Annotated[Accounts, Depends(get_accounts)]
# It leaves the answer to us where there is none.
_Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


def current_token(credentials: _Bearer) -> str:
    """Return the access token of a request.

    Raise `TokenError` if there is none.
    """
    if credentials is None:
        raise _NobodyError
    return credentials.credentials


def current_user(token: Annotated[str, Depends(current_token)], accounts: _Accounts) -> Identity:
    """Return who is signed in.

    Raise `TokenError` if nobody is, which is answered with 401.
    """
    return accounts.check(token)


CurrentUser = Annotated[Identity, Depends(current_user)]
"""Who is signed in, as the type of a parameter."""


def require_role(role: str) -> Any:
    """Return a dependency that lets only users with a role through, by its name; others get 403."""

    def check(user: CurrentUser) -> Identity:
        if not user.has_role(role):
            raise RoleError(role)
        return user

    return Depends(check)


class Problem(BaseModel):
    """What was wrong with a request (RFC 9457)."""

    title: str
    status: int
    detail: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI is told of an endpoint's answers that are `Problem`; 503 is always one.

    ``@app.get("/fleet", responses=problems(401, 403), dependencies=[require_role("manager")])``
    """
    content = {_PROBLEM: {"schema": Problem.model_json_schema()}}
    return {status: {"description": _TITLES[status], "content": content} for status in (*statuses, 503)}


class _Route(APIRoute):
    """Answers that no cache keeps, and no request repeated in what is said of it: it may hold a password."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                response = await handler(request)
            except RequestValidationError as error:
                faults = dict.fromkeys(map(_fault, error.errors()))
                return _problem(422, f"The request cannot be taken: {'; '.join(faults)}.")
            response.headers["Cache-Control"] = "no-store"
            return response

        return handle


def _fault(error: Mapping[str, Any]) -> str:
    """Return what pydantic says of a value, without the value."""
    where, *rest = error["loc"]
    name = ".".join(map(str, rest))
    match error["type"]:
        case "json_invalid":
            return "the body is not JSON"
        case "model_attributes_type" | "missing" if not name:
            return f"the {where} should be a JSON object, sent as application/json"
        case "missing":
            return f"{name} is missing in the {where}"
        case _:
            return f"{name} in the {where} {error['msg'].removeprefix('Input ')}"


router = APIRouter(prefix=PREFIX, tags=["auth"], route_class=_Route)
"""The endpoints; :func:`install` includes them."""


class SignInBody(BaseModel):
    """What one signs in with."""

    email: str
    password: str


class RegisterBody(SignInBody):
    """What one registers with."""

    name: str


class RefreshBody(BaseModel):
    """What is exchanged for new tokens."""

    refresh_token: str


class TokenBody(BaseModel):
    """What came by mail."""

    token: str


class EmailBody(BaseModel):
    """Who has forgotten a password."""

    email: str


class ResetBody(TokenBody):
    """What came by mail, and the new password."""

    password: str


class ChangeBody(BaseModel):
    """The old password and the new one."""

    old_password: str
    new_password: str


class TokensAnswer(BaseModel):
    """Tokens, in the words of OAuth 2.0."""

    access_token: str
    refresh_token: str
    token_type: str = "bearer"  # noqa: S105 - the kind, and no token
    expires_in: int = Field(description="Seconds")


class UserAnswer(BaseModel):
    """Who is signed in."""

    id: UUID
    email: str
    name: str
    roles: list[str]


class Accepted(BaseModel):
    """What is said whether there is such an account or not."""

    detail: str = "If the address can be used, a mail is on its way to it."


@router.post("/register", status_code=202, responses=problems(413, 422, 429))
def register(body: RegisterBody, request: Request, accounts: _Accounts) -> Accepted:
    """Make an account; a mail says how to go on."""
    accounts.register(body.email, body.password, body.name, _address(request))
    return Accepted()


@router.post("/login", responses=problems(401, 413, 422, 429))
def login(body: SignInBody, request: Request, accounts: _Accounts) -> TokensAnswer:
    """Sign in."""
    return _tokens(accounts.sign_in(body.email, body.password, _address(request)))


@router.post("/refresh", responses=problems(401, 413, 422))
def refresh(body: RefreshBody, accounts: _Accounts) -> TokensAnswer:
    """Exchange a refresh token, which is good for once."""
    return _tokens(accounts.refresh(body.refresh_token))


@router.post("/logout", status_code=204, responses=problems(401, 422))
def logout(
    token: Annotated[str, Depends(current_token)], user: CurrentUser, accounts: _Accounts, everywhere: bool = False
) -> None:
    """Sign out here, or everywhere."""
    if everywhere:
        accounts.sign_out_everywhere(user.user_id)
    else:
        accounts.sign_out(token)


@router.get("/me", responses=problems(401))
def me(user: CurrentUser) -> UserAnswer:
    """Say who is signed in."""
    return UserAnswer(id=user.user_id, email=user.email, name=user.name, roles=list(user.roles))


@router.post("/verify-email", status_code=204, responses=problems(400, 413, 422))
def verify_email(body: TokenBody, accounts: _Accounts) -> None:
    """Show that an address is one's own."""
    accounts.verify_email(body.token)


@router.post("/reset-password", status_code=202, responses=problems(413, 422))
def request_reset(body: EmailBody, request: Request, accounts: _Accounts, background: BackgroundTasks) -> Accepted:
    """Ask for a mail to set a new password with."""
    email = addresses.normalised(body.email)
    # What comes after the answer could not say that nothing can be done now.
    accounts.ping()
    # After the answer: to send a mail takes time, and only those get one who have an account.
    background.add_task(_request_reset, accounts, email, _address(request))
    return Accepted()


def _request_reset(accounts: Accounts, email: str, address: str | None) -> None:
    try:
        accounts.request_password_reset(email, address)
    except ThrottledError:
        pass
    except unavailable.ERRORS as error:
        if (why := unavailable.reason(error)) is None:
            raise
        _LOG.error("a mail to reset a password was not sent: %s", why)


@router.post("/reset-password/confirm", status_code=204, responses=problems(400, 413, 422))
def confirm_reset(body: ResetBody, request: Request, accounts: _Accounts) -> None:
    """Set a new password with what came by mail."""
    accounts.reset_password(body.token, body.password, _address(request))


@router.post("/change-password", status_code=204, responses=problems(401, 413, 422, 429))
def change_password(body: ChangeBody, request: Request, user: CurrentUser, accounts: _Accounts) -> None:
    """Set a new password with the old one; ends every sign-in, this one as well."""
    accounts.change_password(user.email, body.old_password, body.new_password, _address(request))


def _tokens(tokens: Tokens) -> TokensAnswer:
    return TokensAnswer(access_token=tokens.access, refresh_token=tokens.refresh, expires_in=int(tokens.expires_in))


def _address(request: Request) -> str | None:
    # Never a header: what stands in X-Forwarded-For is the server's business (uvicorn --proxy-headers), which knows the
    # proxies it can trust.
    return request.client.host if request.client else None


async def _answer(request: Request, error: Exception) -> Response:
    """Return what an error means in HTTP (RFC 9457)."""
    text = str(error)
    match error:
        case ThrottledError():
            return _problem(429, text, {"Retry-After": str(round(max(error.seconds, 1)))})
        case InputError():
            return _problem(422, text)
        case RoleError():
            return _problem(403, text)
        case MailTokenError():
            return _problem(400, text)
        case _:
            # RFC 6750: no code where no token was shown.
            is_bad = isinstance(error, TokenError) and not isinstance(error, _NobodyError)
            is_shown = is_bad and "authorization" in request.headers
            code = ' error="invalid_token"' if is_shown else ""
            return _problem(401, text, {"WWW-Authenticate": f"Bearer{code}"})


async def _answer_unavailable(request: Request, error: Exception) -> Response:
    """Answer for a database that cannot be used: the client is told to come again, the log why."""
    why = unavailable.reason(error)
    if why is None:
        raise error
    # The path as it was declared: what stands in its place in a request is the client's.
    _LOG.error("%s %s: %s", request.method, getattr(request.scope.get("route"), "path", "-"), why)
    return _problem(503, "This cannot be done now, and may be again in a while. Try again later.")


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    content = {"title": _TITLES[status], "status": status, "detail": detail}
    return JSONResponse(content, status, {**(headers or {}), "Cache-Control": "no-store"}, media_type=_PROBLEM)


class BodyLimit:
    """Refuses long bodies of requests below ``/auth`` as they come, before anything keeps them."""

    def __init__(self, app: ASGIApp, prefix: str = PREFIX, most: int = MOST_BYTES) -> None:
        self._app = app
        self._prefix = prefix
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 413."""
        # Without what the app is mounted below, where it is.
        if scope["type"] != "http" or not scope["path"].removeprefix(scope.get("root_path", "")).startswith(
            f"{self._prefix}/"
        ):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        message: Message = {"type": "http.request", "more_body": True}
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > self._most:
                answer = _problem(413, f"The request is longer than {self._most} bytes.", {"Connection": "close"})
                await answer(scope, receive, send)
                return
        # Read as a whole, since it is short; and handed on as if it came now.
        waiting: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def handed_on() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, handed_on, send)
