"""Add email_verified and last_login_at to users.

Revision ID: f090d54b4e96
Revises: a4f0ca511229
Create Date: 2026-11-09 11:15:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "f090d54b4e96"
down_revision: str | None = "a4f0ca511229"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.add_column(
        "users",
        sa.Column(
            "email_verified",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether the person has shown that the address is theirs.",
        ),
    )
    op.add_column(
        "users",
        sa.Column(
            "last_login_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When the person last signed in, if ever.",
        ),
    )


def downgrade() -> None:
    """Take the revision back."""
    op.drop_column("users", "last_login_at")
    op.drop_column("users", "email_verified")
