"""Add retired_at to vehicles.

Revision ID: 8593665afbc7
Revises: e131ac692e23
Create Date: 2026-11-16 10:15:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "8593665afbc7"
down_revision: str | None = "e131ac692e23"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.add_column(
        "vehicles",
        sa.Column(
            "retired_at", sa.DateTime(timezone=True), nullable=True, comment="When it left the fleet, if it did."
        ),
    )


def downgrade() -> None:
    """Take the revision back."""
    op.drop_column("vehicles", "retired_at")
