"""Declare the tables of ``atriz_shared``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    DateTime,
    Double,
    FetchedValue,
    ForeignKey,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, validates

from atriz_database.model import NAMING_CONVENTION

# The form that HTML prescribes for <input type="email">, in lower case and with at least one dot in the domain:
# what a browser lets through arrives here, and nobody has an address at a bare top-level domain.
EMAIL_FORM = (
    r"^[a-z0-9.!#$%&''*+/=?^_`{|}~-]+"
    r"@[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?([.][a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+$"
)

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


class User(Base):
    """A person who can sign in, to any of the apps."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("email = lower(email)", name="email_lower_case"),
        CheckConstraint(f"char_length(email) <= 254 AND email ~ '{EMAIL_FORM}'", name="email_form"),
        CheckConstraint("btrim(name) <> ''", name="name_not_blank"),
        {"comment": "People who can sign in, to any of the apps."},
    )

    id: Mapped[PrimaryKey]
    email: Mapped[str] = mapped_column(unique=True, comment="Address to sign in with, always in lower case.")
    password_hash: Mapped[str] = mapped_column(
        comment="Password as an encoded argon2id hash, or a bcrypt one of old until the next sign-in; salt included."
    )
    name: Mapped[str] = mapped_column(comment="Name as the person writes it.")
    is_active: Mapped[bool] = mapped_column(server_default=text("true"), comment="Whether the person may sign in.")
    email_verified: Mapped[bool] = mapped_column(
        server_default=text("false"), comment="Whether the person has shown that the address is theirs."
    )
    last_login_at: Mapped[datetime | None] = mapped_column(comment="When the person last signed in, if ever.")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    roles: Mapped[list[Role]] = relationship(secondary="user_roles", order_by="Role.name")

    @validates("email")
    def _lower_email(self, _key: str, email: str) -> str:
        """Lower `email` as the trigger does, so that the object and its row agree without a second look."""
        # ASCII alone: elsewhere a letter may be lowered to one of ASCII, and an address to somebody else's.
        return email.lower() if email.isascii() else email


class AuthToken(Base):
    """A token handed to a person; only its hash is kept."""

    __tablename__ = "auth_tokens"
    __table_args__ = (
        CheckConstraint(
            "token_type IN ('access', 'refresh', 'api', 'email_verification', 'password_reset')", name="token_type"
        ),
        {"comment": "Tokens handed to people; only their hashes are kept."},
    )

    id: Mapped[PrimaryKey]
    user_id: Mapped[UUID] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), index=True, comment="Whose token it is."
    )
    token_type: Mapped[str] = mapped_column(comment="What the token is good for.")
    token_hash: Mapped[str] = mapped_column(unique=True, comment="Hash of the token; the token itself is never kept.")
    expires_at: Mapped[datetime] = mapped_column(index=True, comment="From when on the token is no longer good.")
    revoked_at: Mapped[datetime | None] = mapped_column(comment="When the token was taken back, if it was.")
    last_used_at: Mapped[datetime | None] = mapped_column(
        comment="When a token that is good for once was used; not kept of an access token, which each request shows."
    )
    created_at: Mapped[CreatedAt]
    # Without an index: a family is found among the tokens of its user, of whom there are few.
    family_id: Mapped[UUID | None] = mapped_column(comment="The sign-in that the token comes from, if it is of one.")


class Attempt(Base):
    """How often an account, an address, or one from the other, was tried of late."""

    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint("level >= 0 AND level < 'Infinity'", name="level"),
        {
            "comment": "Failed sign-ins, and mails asked for, by account and by address.",
            # A failed sign-in waits for no disk, and nobody makes us write by guessing.
            "prefixes": ["UNLOGGED"],
        },
    )

    subject: Mapped[bytes] = mapped_column(
        primary_key=True,
        comment="SHA-256 of what is counted: an account, an address, or both; never the text that somebody typed.",
    )
    level: Mapped[float] = mapped_column(Double, comment="How many attempts count as of counted_at; sinks with time.")
    counted_at: Mapped[datetime] = mapped_column(comment="When the last one was counted.")
    trusted_until: Mapped[datetime | None] = mapped_column(
        comment="Until when the account's own limit does not hold for this address, after a sign-in from there."
    )


class Role(Base):
    """What a person can be allowed to do, by name."""

    __tablename__ = "roles"
    __table_args__ = (
        CheckConstraint("btrim(name) <> ''", name="name_not_blank"),
        {"comment": "What people can be allowed to do, by name."},
    )

    id: Mapped[PrimaryKey]
    name: Mapped[str] = mapped_column(unique=True, comment="Name that code asks for, such as admin.")
    description: Mapped[str | None] = mapped_column(comment="What the role allows, in words.")


class UserRole(Base):
    """One role of one person."""

    __tablename__ = "user_roles"
    __table_args__ = (UniqueConstraint("user_id", "role_id"), {"comment": "Which person has which role."})

    id: Mapped[PrimaryKey]
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), comment="Who has the role.")
    # No cascade: a role that somebody still has is not dropped by accident.
    role_id: Mapped[UUID] = mapped_column(ForeignKey("roles.id"), index=True, comment="The role they have.")


class UserMetadata(Base):
    """One small fact about a person that no column is made for."""

    __tablename__ = "user_metadata"
    __table_args__ = (
        UniqueConstraint("user_id", "key"),
        CheckConstraint("btrim(key) <> ''", name="key_not_blank"),
        {"comment": "Small facts about people that no column is made for."},
    )

    id: Mapped[PrimaryKey]
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), comment="Whom it is about.")
    key: Mapped[str] = mapped_column(comment="Name of the fact, once for each person.")
    value: Mapped[Any] = mapped_column(JSONB, nullable=False, comment="The fact.")
