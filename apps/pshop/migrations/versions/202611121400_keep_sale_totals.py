"""Keep the total of a sale by a trigger on its lines.

Revision ID: 6ae8780743ef
Revises: 9d853a47aba8
Create Date: 2026-11-12 14:00:00
"""

from __future__ import annotations

from collections.abc import Sequence

from atriz_database.migrations import sql_file

revision: str = "6ae8780743ef"
down_revision: str | None = "9d853a47aba8"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

upgrade, downgrade = sql_file(__file__)
