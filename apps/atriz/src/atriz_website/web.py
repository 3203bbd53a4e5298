"""Answer over HTTP: one's own profile. ``uvicorn --factory atriz_website.web:create_app``; ``nox -s serve:atriz``."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from atriz_core import application
from atriz_core.accounts import Accounts
from atriz_core.application import OwnDatabase
from atriz_core.web import CurrentUser, problems
from atriz_database import Database
from atriz_website.models import UserProfile


class ProfileBody(BaseModel):
    """What one says of oneself."""

    display_name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
    bio: Annotated[str, StringConstraints(max_length=2000)] | None = None


class ProfileAnswer(ProfileBody):
    """A profile, as a client sees it."""

    model_config = ConfigDict(from_attributes=True)

    user_id: UUID
    is_public: bool


def create_app(accounts: Accounts | None = None, database: Database | None = None) -> FastAPI:
    """Return the application; what is not given is found by the settings."""
    app = application.create("atriz", "atriz", accounts=accounts, database=database)

    @app.get("/profile", response_model=ProfileAnswer, responses=problems(401))
    def profile(user: CurrentUser, own: OwnDatabase) -> UserProfile:
        """Return the profile of whoever asks."""
        with own.session(read_only=True) as session:
            found = session.scalar(select(UserProfile).where(UserProfile.user_id == user.user_id))
        if found is None:
            raise HTTPException(404, "You have no profile yet. PUT one.")
        return found

    @app.put("/profile", response_model=ProfileAnswer, responses=problems(401))
    def put_profile(body: ProfileBody, user: CurrentUser, own: OwnDatabase) -> UserProfile:
        """Make or change the profile of whoever asks."""
        values = body.model_dump()
        statement = (
            insert(UserProfile)
            .values(user_id=user.user_id, **values)
            .on_conflict_do_update(index_elements=[UserProfile.user_id], set_=values)
            .returning(UserProfile)
        )
        with own.session() as session:
            return session.scalars(statement).one()

    return app
