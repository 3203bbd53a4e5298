"""An application of FastAPI on a package's own database, with sign-in: what the apps have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request

from atriz_core import web
from atriz_core.accounts import Accounts
from atriz_database import Database


def create(package: str, title: str, *, accounts: Accounts | None = None, database: Database | None = None) -> FastAPI:
    """Return an application that answers below ``/auth``, and has the package's database for `OwnDatabase`.

    What is not given is found by the settings, and closed when the application ends.

    Raise what `Accounts.from_environment` and `Database.from_environment` raise.
    """
    with ExitStack() as failed:
        if accounts is None:
            accounts = failed.enter_context(Accounts.from_environment(package))
        if database is None:
            database = failed.enter_context(Database.from_environment(package))
        own = failed.pop_all()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with own:
            yield

    app = FastAPI(title=title, lifespan=lifespan)
    app.state.database = database
    web.install(app, accounts)
    return app


def _get_database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


OwnDatabase = Annotated[Database, Depends(_get_database)]
"""The package's own database, as the type of a parameter."""
