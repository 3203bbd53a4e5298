"""Create users.

Revision ID: 86209fecf615
Revises:
Create Date: 2026-11-02 09:30:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "86209fecf615"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    # gen_random_uuid() is built in from PostgreSQL 13; before, the extension pgcrypto brings it. In one DO block and
    # not in Python, so that offline SQL (--sql) decides on the server it is run against.
    op.execute(
        """
        DO $$
        BEGIN
            IF current_setting('server_version_num')::int < 130000 THEN
                CREATE EXTENSION IF NOT EXISTS pgcrypto;
            END IF;
        END
        $$
        """
    )
    op.create_table(
        "users",
        sa.Column(
            "id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False, comment="Identity of the row."
        ),
        sa.Column("email", sa.Text(), nullable=False, comment="Address to sign in with, always in lower case."),
        sa.Column(
            "password_hash", sa.Text(), nullable=False, comment="Password as an encoded argon2id hash, salt included."
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="Name as the person writes it."),
        sa.Column(
            "is_active",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="Whether the person may sign in.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row last changed; a trigger keeps it.",
        ),
        sa.CheckConstraint("email = lower(email)", name=op.f("ck_users_email_lower_case")),
        sa.CheckConstraint(
            "char_length(email) <= 254 AND email ~ "
            "'^[a-z0-9.!#$%&''*+/=?^_`{|}~-]+"
            "@[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?([.][a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+$'",
            name=op.f("ck_users_email_form"),
        ),
        sa.CheckConstraint("btrim(name) <> ''", name=op.f("ck_users_name_not_blank")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        comment="People who can sign in, to any of the apps.",
    )


def downgrade() -> None:
    """Take the revision back."""
    op.drop_table("users")
    # The extension pgcrypto stays: it may have been there before, and others may use it by now.
