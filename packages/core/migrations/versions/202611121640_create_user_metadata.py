"""Create user_metadata.

Revision ID: 9b28064ebe8c
Revises: f090d54b4e96
Create Date: 2026-11-12 16:40:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "9b28064ebe8c"
down_revision: str | None = "f090d54b4e96"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.create_table(
        "user_metadata",
        sa.Column(
            "id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False, comment="Identity of the row."
        ),
        sa.Column("user_id", sa.Uuid(), nullable=False, comment="Whom it is about."),
        sa.Column("key", sa.Text(), nullable=False, comment="Name of the fact, once for each person."),
        sa.Column("value", postgresql.JSONB(), nullable=False, comment="The fact."),
        sa.CheckConstraint("btrim(key) <> ''", name=op.f("ck_user_metadata_key_not_blank")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_user_metadata_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_metadata")),
        sa.UniqueConstraint("user_id", "key", name=op.f("uq_user_metadata_user_id_key")),
        comment="Small facts about people that no column is made for.",
    )


def downgrade() -> None:
    """Take the revision back."""
    op.drop_table("user_metadata")
