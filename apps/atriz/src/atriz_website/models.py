"""Declare the tables of ``atriz_db``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, FetchedValue, MetaData, Text, func, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from atriz_database.model import NAMING_CONVENTION, reference

PrimaryKey = Annotated[
    UUID, mapped_column(primary_key=True, server_default=text("gen_random_uuid()"), comment="Identity of the row.")
]
CreatedAt = Annotated[datetime, mapped_column(server_default=func.now(), comment="When the row was made.")]
UpdatedAt = Annotated[
    datetime,
    mapped_column(
        server_default=func.now(),
        # A trigger writes it, so the ORM must read it again after every UPDATE.
        server_onupdate=FetchedValue(),
        comment="When the row last changed; a trigger keeps it.",
    ),
]


class Base(DeclarativeBase):
    """Collect the tables of this database."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {str: Text, datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's own interface


class UserProfile(Base):
    """How one person shows themselves on the site."""

    __tablename__ = "user_profiles"
    __table_args__ = (
        CheckConstraint("btrim(display_name) <> ''", name="display_name_not_blank"),
        CheckConstraint("char_length(bio) <= 2000", name="bio_length"),
        CheckConstraint("avatar_url ~ '^https?://'", name="avatar_url_form"),
        CheckConstraint("website_url ~ '^https?://'", name="website_url_form"),
        {"comment": "How people show themselves on the site, one row for each."},
    )

    id: Mapped[PrimaryKey]
    # Unique, which brings the index along.
    user_id: Mapped[UUID] = reference(
        "core.users.id", index=False, unique=True, nullable=False, comment="Whose profile it is; a user of core."
    )
    display_name: Mapped[str] = mapped_column(comment="Name shown on the site.")
    headline: Mapped[str | None] = mapped_column(comment="What the person does, in one line.")
    bio: Mapped[str | None] = mapped_column(comment="What the person says of themselves.")
    location: Mapped[str | None] = mapped_column(comment="Where the person is, as they put it.")
    avatar_url: Mapped[str | None] = mapped_column(comment="Picture of the person.")
    website_url: Mapped[str | None] = mapped_column(comment="The person's own site.")
    is_public: Mapped[bool] = mapped_column(
        server_default=text("false"), comment="Whether visitors who are not signed in see the profile."
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]


class UserPreferences(Base):
    """What one person prefers on the site."""

    __tablename__ = "user_preferences"
    __table_args__ = (
        CheckConstraint("theme IN ('system', 'light', 'dark')", name="theme"),
        CheckConstraint("language ~ '^[a-z]{2,3}(-[A-Z]{2})?$'", name="language_form"),
        CheckConstraint("btrim(time_zone) <> ''", name="time_zone_not_blank"),
        {"comment": "What people prefer on the site, one row for each."},
    )

    id: Mapped[PrimaryKey]
    user_id: Mapped[UUID] = reference(
        "core.users.id", index=False, unique=True, nullable=False, comment="Whose preferences they are; a user of core."
    )
    theme: Mapped[str] = mapped_column(
        server_default=text("'system'::text"), comment="Colours of the site: system, light or dark."
    )
    language: Mapped[str] = mapped_column(
        server_default=text("'en'::text"), comment="Language of the site, such as en or pt-BR."
    )
    time_zone: Mapped[str] = mapped_column(
        server_default=text("'UTC'::text"), comment="Name of the time zone that times are shown in."
    )
    email_notifications: Mapped[bool] = mapped_column(
        server_default=text("true"), comment="Whether news about the person's own account comes by mail."
    )
    newsletter: Mapped[bool] = mapped_column(
        server_default=text("false"), comment="Whether the newsletter comes by mail."
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]
