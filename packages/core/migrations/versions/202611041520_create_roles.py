"""Create roles and user_roles.

Revision ID: a4f0ca511229
Revises: b246bab0abfd
Create Date: 2026-11-04 15:20:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "a4f0ca511229"
down_revision: str | None = "b246bab0abfd"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.create_table(
        "roles",
        sa.Column(
            "id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False, comment="Identity of the row."
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="Name that code asks for, such as admin."),
        sa.Column("description", sa.Text(), nullable=True, comment="What the role allows, in words."),
        sa.CheckConstraint("btrim(name) <> ''", name=op.f("ck_roles_name_not_blank")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_roles")),
        sa.UniqueConstraint("name", name=op.f("uq_roles_name")),
        comment="What people can be allowed to do, by name.",
    )
    op.create_table(
        "user_roles",
        sa.Column(
            "id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False, comment="Identity of the row."
        ),
        sa.Column("user_id", sa.Uuid(), nullable=False, comment="Who has the role."),
        sa.Column("role_id", sa.Uuid(), nullable=False, comment="The role they have."),
        sa.ForeignKeyConstraint(["role_id"], ["roles.id"], name=op.f("fk_user_roles_role_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_user_roles_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_roles")),
        sa.UniqueConstraint("user_id", "role_id", name=op.f("uq_user_roles_user_id_role_id")),
        comment="Which person has which role.",
    )
    op.create_index(op.f("ix_user_roles_role_id"), "user_roles", ["role_id"], unique=False)


def downgrade() -> None:
    """Take the revision back."""
    op.drop_index(op.f("ix_user_roles_role_id"), table_name="user_roles")
    op.drop_table("user_roles")
    op.drop_table("roles")
