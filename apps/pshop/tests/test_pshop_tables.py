"""What the tables of pshop refuse and keep true."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors, sql

from atriz_database.model import references
from pshop.models import Base

Connection = psycopg.Connection[Any]

LONG_AGO = datetime(2020, 2, 29, 12, tzinfo=UTC)


def insert(connection: Connection, table: str, **values: object) -> Any:
    """Insert a row and return its id."""
    row = connection.execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join([sql.Placeholder()] * len(values)),
        ),
        list(values.values()),
    ).fetchone()
    assert row is not None
    return row[0]


def add_product(connection: Connection, sku: str = "NEW-1", **values: object) -> UUID:
    """Insert a product and return its id."""
    product: UUID = insert(connection, "products", **{"sku": sku, "name": "New", "price": Decimal("9.90"), **values})
    return product


def add_sale(connection: Connection, **values: object) -> UUID:
    """Insert a sale without lines and return its id."""
    sale: UUID = insert(connection, "sales", **{"user_id": uuid4(), "payment_method": "card", **values})
    return sale


def add_line(connection: Connection, sale: UUID, product: UUID, line_number: int = 1, **values: object) -> int:
    """Insert a line of `sale` and return its id."""
    columns = {"quantity": 1, "unit_price": Decimal("9.90"), **values}
    line: int = insert(connection, "sale_items", sale_id=sale, product_id=product, line_number=line_number, **columns)
    return line


def total(connection: Connection, sale: UUID) -> Decimal:
    """Return the total of `sale`."""
    row = connection.execute("SELECT total FROM sales WHERE id = %s", [sale]).fetchone()
    assert row is not None
    amount: Decimal = row[0]
    return amount


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("price", Decimal("-0.01")),
        ("price", Decimal("NaN")),
        ("sku", ""),
        ("sku", "tea-1"),
        ("sku", "TEA 1"),
        ("sku", "TEA--1"),
        ("name", "  "),
    ],
)
def test_product_refuses(connection: Connection, column: str, value: Any) -> None:
    """A price below zero or that is no number, an odd SKU and a blank name are refused."""
    with pytest.raises(errors.CheckViolation), connection.transaction():
        add_product(connection, **{column: value})


def test_product_may_be_free(connection: Connection) -> None:
    """A price of zero is a price."""
    add_product(connection, price=Decimal(0))


def test_price_beyond_twelve_digits_is_refused(connection: Connection) -> None:
    """An amount that numeric(12,2) cannot hold is an error and is not cut off."""
    with pytest.raises(errors.NumericValueOutOfRange), connection.transaction():
        add_product(connection, price=Decimal("10000000000"))


def test_sku_is_unique(connection: Connection) -> None:
    """Two products cannot share a SKU."""
    add_product(connection)
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        add_product(connection)


@pytest.mark.parametrize(("column", "value"), [("quantity", -1), ("reorder_level", -1), ("location", "")])
def test_inventory_refuses(connection: Connection, column: str, value: Any) -> None:
    """Fewer than none, a reorder level below zero and a blank place are refused."""
    product = add_product(connection)
    with pytest.raises(errors.CheckViolation), connection.transaction():
        insert(connection, "inventory", **{"product_id": product, column: value})


def test_stock_cannot_be_sold_below_zero(connection: Connection) -> None:
    """Who takes more out of the stock than there is gets an error, and the stock stays."""
    product = add_product(connection)
    insert(connection, "inventory", product_id=product, quantity=3)
    take = "UPDATE inventory SET quantity = quantity - %s WHERE product_id = %s RETURNING quantity"
    assert connection.execute(take, [2, product]).fetchone() == (1,)
    with pytest.raises(errors.CheckViolation), connection.transaction():
        connection.execute(take, [2, product])
    assert connection.execute(take, [1, product]).fetchone() == (0,)


def test_product_lies_once_in_each_place(connection: Connection) -> None:
    """One product has one row for each place."""
    product = add_product(connection)
    insert(connection, "inventory", product_id=product)
    insert(connection, "inventory", product_id=product, location="cellar")
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        insert(connection, "inventory", product_id=product)


@pytest.mark.parametrize(
    ("column", "value"),
    [("status", "lost"), ("payment_method", "barter"), ("total", Decimal(-1)), ("total", Decimal("NaN"))],
)
def test_sale_refuses(connection: Connection, column: str, value: Any) -> None:
    """An unknown status or way to pay, and a total that no sale has, are refused."""
    with pytest.raises(errors.CheckViolation), connection.transaction():
        add_sale(connection, **{column: value})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("quantity", 0),
        ("unit_price", Decimal(-1)),
        ("unit_price", Decimal("NaN")),
        ("discount", Decimal(-1)),
        ("discount", Decimal("9.91")),
        ("discount", Decimal("NaN")),
        ("line_number", 0),
    ],
)
def test_line_refuses(connection: Connection, column: str, value: Any) -> None:
    """A line of nothing, at a negative price, or with more taken off than it costs, is refused."""
    sale, product = add_sale(connection), add_product(connection)
    with pytest.raises(errors.CheckViolation), connection.transaction():
        add_line(connection, sale, product, **{column: value})


def test_line_number_is_unique_within_a_sale(connection: Connection) -> None:
    """Two lines cannot stand at the same place of one receipt."""
    sale, product = add_sale(connection), add_product(connection)
    add_line(connection, sale, product)
    add_line(connection, add_sale(connection), product)
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        add_line(connection, sale, product)


def test_receipt_numbers_count_up(connection: Connection) -> None:
    """Each sale gets a receipt number higher than the one before."""
    sales = [add_sale(connection) for _ in range(3)]
    rows = connection.execute("SELECT id FROM sales WHERE id = ANY(%s) ORDER BY receipt_number", [sales]).fetchall()
    assert [row[0] for row in rows] == sales


@pytest.mark.seeded
@pytest.mark.parametrize("table", ["products", "inventory", "sales"])
def test_updated_at_in_the_shop_follows_each_change(connection: Connection, table: str) -> None:
    """A change sets updated_at to now, also against a writer who says otherwise."""
    statement = sql.SQL("UPDATE {} SET updated_at = %s RETURNING updated_at = now()").format(sql.Identifier(table))
    assert set(connection.execute(statement, [LONG_AGO]).fetchall()) == {(True,)}


def test_product_that_was_sold_stays(connection: Connection) -> None:
    """A product on a receipt cannot be deleted, and one that was never sold goes with its stock."""
    sold, unsold = add_product(connection), add_product(connection, "NEW-2")
    insert(connection, "inventory", product_id=unsold)
    add_line(connection, add_sale(connection), sold)
    with pytest.raises(errors.ForeignKeyViolation), connection.transaction():
        connection.execute("DELETE FROM products WHERE id = %s", [sold])
    connection.execute("DELETE FROM products WHERE id = %s", [unsold])
    assert connection.execute("SELECT FROM inventory WHERE product_id = %s", [unsold]).fetchall() == []


def test_total_follows_the_lines(connection: Connection) -> None:
    """The total is right after a line was added, changed, moved to another sale, or taken away."""
    product = add_product(connection)
    sale, other = add_sale(connection), add_sale(connection)
    first = add_line(connection, sale, product, 1, quantity=2, unit_price=Decimal("9.90"))
    second = add_line(connection, sale, product, 2, unit_price=Decimal("5.00"), discount=Decimal("0.50"))
    assert total(connection, sale) == Decimal("24.30")

    connection.execute("UPDATE sale_items SET quantity = 3 WHERE id = %s", [first])
    assert total(connection, sale) == Decimal("34.20")

    connection.execute("UPDATE sale_items SET sale_id = %s WHERE id = %s", [other, second])
    assert (total(connection, sale), total(connection, other)) == (Decimal("29.70"), Decimal("4.50"))

    connection.execute("DELETE FROM sale_items WHERE id = %s", [first])
    assert total(connection, sale) == 0


def test_lines_go_with_their_sale(connection: Connection) -> None:
    """Deleting a sale deletes its lines, the trigger on the total notwithstanding."""
    sale = add_sale(connection)
    add_line(connection, sale, add_product(connection))
    connection.execute("DELETE FROM sales WHERE id = %s", [sale])
    assert connection.execute("SELECT FROM sale_items WHERE sale_id = %s", [sale]).fetchall() == []


# (quantity, price in cents, discount as a share of the line)
LINES = st.lists(st.tuples(st.integers(1, 999), st.integers(0, 10**6), st.floats(0, 1)), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(lines=LINES, data=st.data())
def test_total_is_the_sum_of_what_is_left(connection: Connection, lines: list[Any], data: st.DataObject) -> None:
    """Whatever lines a sale gets and loses, its total is their sum to the cent."""
    with connection.transaction(force_rollback=True):
        sale, product = add_sale(connection), add_product(connection)
        worth = {}
        for number, (quantity, cents, share) in enumerate(lines, start=1):
            price = Decimal(cents) / 100
            discount = (quantity * price * Decimal(share)).quantize(Decimal("0.01"), "ROUND_DOWN")
            line = add_line(connection, sale, product, number, quantity=quantity, unit_price=price, discount=discount)
            worth[line] = quantity * price - discount
        gone = data.draw(st.sets(st.sampled_from(sorted(worth))))
        connection.execute("DELETE FROM sale_items WHERE id = ANY(%s)", [list(gone)])
        assert total(connection, sale) == sum(amount for line, amount in worth.items() if line not in gone)


def test_user_ids_of_sales_are_declared_as_references() -> None:
    """The cashier of a sale is declared as a user of core, so that tools can follow it."""
    assert [str(reference) for reference in references(Base.metadata)] == ["sales.user_id -> core.users.id"]
