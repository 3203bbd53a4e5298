"""What a seeded database of pshop holds."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import psycopg
import pytest

from atriz_core.development import USERS, user_id

Connection = psycopg.Connection[Any]

SEEDS = Path(__file__).parents[1] / "seeds"
TABLES = ("products", "inventory", "sales", "sale_items")


def run_seeds(connection: Connection) -> None:
    """Run the seeds as ``atriz seed`` does."""
    for path in sorted(SEEDS.glob("*.py")):
        runpy.run_path(str(path))["seed"](connection)


def content(connection: Connection) -> dict[str, list[Any]]:
    """Return every row of every table."""
    return {
        table: connection.execute(f"SELECT row::text FROM {table} AS row ORDER BY 1").fetchall() for table in TABLES
    }


@pytest.mark.seeded
def test_every_product_has_its_stock(connection: Connection) -> None:
    """Twenty products are on sale, each with a row in the inventory."""
    row = connection.execute(
        "SELECT count(*), count(inventory.id) FROM products LEFT JOIN inventory ON product_id = products.id"
    ).fetchone()
    assert row == (20, 20)


@pytest.mark.seeded
def test_seeded_totals_are_the_sums_of_their_lines(connection: Connection) -> None:
    """Each seeded sale has lines, and its total is their sum."""
    rows = connection.execute(
        "SELECT total, sum(line_total) FROM sales JOIN sale_items ON sale_id = sales.id GROUP BY sales.id"
    ).fetchall()
    assert len(rows) == 6
    assert all(total == lines > 0 for total, lines in rows)


@pytest.mark.seeded
def test_cashiers_are_development_users(connection: Connection) -> None:
    """Every cashier is a development user of core."""
    cashiers = {row[0] for row in connection.execute("SELECT user_id FROM sales").fetchall()}
    assert cashiers
    assert cashiers <= {user_id(user.email) for user in USERS}


@pytest.mark.seeded
def test_pshop_seeds_twice_change_nothing(connection: Connection) -> None:
    """A second run of the seeds inserts nothing, changes nothing, and uses up no receipt number."""
    sequences = "SELECT sequencename, last_value FROM pg_sequences ORDER BY 1"
    before, numbers = content(connection), connection.execute(sequences).fetchall()
    run_seeds(connection)
    assert content(connection) == before
    assert connection.execute(sequences).fetchall() == numbers


def test_pshop_seeds_leave_a_developers_own_product_alone(connection: Connection) -> None:
    """Where a developer has made a product of that SKU by hand, theirs stays, is in stock and is sold."""
    row = connection.execute(
        "INSERT INTO products (sku, name, price) VALUES ('TEA-ASSAM-250', 'Mine', 1) RETURNING id"
    ).fetchone()
    assert row is not None
    run_seeds(connection)
    found = connection.execute(
        "SELECT name, price, (SELECT quantity FROM inventory WHERE product_id = products.id),"
        " (SELECT count(*) FROM sale_items WHERE product_id = products.id) FROM products WHERE id = %s",
        row,
    ).fetchone()
    assert found == ("Mine", 1, 55, 1)
