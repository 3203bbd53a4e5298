"""Add family_id to auth_tokens, and say what is kept of a use.

Revision ID: 3c1f0d6a9b27
Revises: 9b28064ebe8c
Create Date: 2026-11-23 13:30:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "3c1f0d6a9b27"
down_revision: str | None = "9b28064ebe8c"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    # Without an index: a family is found among the tokens of its user, of whom there are few.
    op.add_column(
        "auth_tokens",
        sa.Column(
            "family_id", sa.Uuid(), nullable=True, comment="The sign-in that the token comes from, if it is of one."
        ),
    )
    op.alter_column(
        "auth_tokens",
        "last_used_at",
        existing_type=sa.DateTime(timezone=True),
        existing_nullable=True,
        comment="When a token that is good for once was used; not kept of an access token, which each request shows.",
        existing_comment="When the token was last shown, if ever.",
    )
    op.alter_column(
        "users",
        "password_hash",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="Password as an encoded argon2id hash, or a bcrypt one of old until the next sign-in; salt included.",
        existing_comment="Password as an encoded argon2id hash, salt included.",
    )


def downgrade() -> None:
    """Take the revision back."""
    op.alter_column(
        "users",
        "password_hash",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="Password as an encoded argon2id hash, salt included.",
        existing_comment="Password as an encoded argon2id hash, or a bcrypt one of old until the next sign-in; "
        "salt included.",
    )
    op.alter_column(
        "auth_tokens",
        "last_used_at",
        existing_type=sa.DateTime(timezone=True),
        existing_nullable=True,
        comment="When the token was last shown, if ever.",
        existing_comment="When a token that is good for once was used; not kept of an access token, which each "
        "request shows.",
    )
    op.drop_column("auth_tokens", "family_id")
