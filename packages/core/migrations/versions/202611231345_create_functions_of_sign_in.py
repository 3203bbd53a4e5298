"""Create the functions of sign-in, in schema auth.

Revision ID: c4e6b1298d03
Revises: a17d94e3c5f2
Create Date: 2026-11-23 13:45:00
"""

from __future__ import annotations

from collections.abc import Sequence

from atriz_database.migrations import sql_file

revision: str = "c4e6b1298d03"
down_revision: str | None = "a17d94e3c5f2"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

upgrade, downgrade = sql_file(__file__)
