"""Run the migrations of ``pshop_db`` from Alembic, with the settings and safeguards that the atriz command uses."""

from __future__ import annotations

from atriz_database.migrations import run

run("pshop.models:Base.metadata")
