"""Add the roles that code asks for; lower only ASCII in addresses.

Revision ID: a17d94e3c5f2
Revises: 5b8e2f7c40d1
Create Date: 2026-11-23 13:40:00
"""

from __future__ import annotations

from collections.abc import Sequence

from atriz_database.migrations import sql_file

revision: str = "a17d94e3c5f2"
down_revision: str | None = "5b8e2f7c40d1"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

upgrade, downgrade = sql_file(__file__)
