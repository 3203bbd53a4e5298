"""Add is_public to user_profiles.

Revision ID: 9519c7e405e6
Revises: 2587a64f4bf5
Create Date: 2026-11-13 14:30:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "9519c7e405e6"
down_revision: str | None = "2587a64f4bf5"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.add_column(
        "user_profiles",
        sa.Column(
            "is_public",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether visitors who are not signed in see the profile.",
        ),
    )


def downgrade() -> None:
    """Take the revision back."""
    op.drop_column("user_profiles", "is_public")
