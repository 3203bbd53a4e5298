"""Seed twenty products with their stock, and a few sales."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg

from atriz_core.development import user_id

# (sku, name, description, category, price, quantity in the shop, reorder level)
PRODUCTS = (
    ("TEA-SENCHA-100", "Sencha, 100 g", "Green, grassy, from Shizuoka.", "tea", "12.50", 42, 10),
    ("TEA-GYOKURO-50", "Gyokuro, 50 g", "Shaded for three weeks; brew at 50 degrees.", "tea", "24.00", 9, 5),
    ("TEA-OOLONG-100", "Tie Guan Yin, 100 g", "Oolong from Anxi, lightly roasted.", "tea", "16.80", 31, 10),
    ("TEA-PUERH-357", "Shou pu-erh, cake of 357 g", "Pressed in 2019, smooth and dark.", "tea", "38.00", 6, 2),
    ("TEA-DARJEELING-100", "Darjeeling first flush, 100 g", "Muscatel, this spring's.", "tea", "19.90", 18, 8),
    ("TEA-ASSAM-250", "Assam, 250 g", "Strong enough for milk.", "tea", "11.20", 55, 15),
    ("TEA-ROOIBOS-100", "Rooibos, 100 g", "Without caffeine.", "tea", "6.40", 37, 10),
    ("TEA-CHAMOMILE-50", "Chamomile, 50 g", "Whole flowers.", "tea", "5.90", 22, 8),
    ("TEA-MATCHA-30", "Matcha, tin of 30 g", "Stone-ground, from Uji.", "tea", "27.50", 12, 4),
    ("POT-KYUSU-300", "Kyusu, 300 ml", "Side-handled pot of red clay from Tokoname.", "pots", "64.00", 5, 2),
    ("POT-GAIWAN-120", "Gaiwan, 120 ml", "White porcelain, with lid and saucer.", "pots", "18.00", 14, 4),
    ("POT-GLASS-900", "Glass pot, 900 ml", "With a strainer of steel.", "pots", "32.00", 8, 3),
    ("POT-IRON-600", "Cast-iron pot, 600 ml", "Keeps warm for an hour.", "pots", "79.00", 3, 1),
    ("CUP-YUNOMI-180", "Yunomi, 180 ml", "Every one a little different.", "cups", "14.00", 24, 6),
    ("CUP-TASTING-40", "Tasting cups, set of 6", "Thin porcelain, 40 ml each.", "cups", "21.00", 10, 3),
    ("CUP-MUG-350", "Mug, 350 ml", "Goes into the dishwasher.", "cups", "9.50", 40, 12),
    ("ACC-WHISK-100", "Bamboo whisk, 100 prongs", "For matcha; soak before use.", "accessories", "17.00", 11, 4),
    ("ACC-SCOOP-1", "Bamboo scoop", None, "accessories", "6.00", 26, 6),
    ("ACC-FILTER-100", "Paper filters, 100", "Unbleached.", "accessories", "4.20", 63, 20),
    ("ACC-TIN-250", "Tea tin, 250 g", "Tight, with a second lid inside.", "accessories", "8.80", 0, 10),
)

# One entry is one sale: (number, cashier, payment, status, hours ago, lines of (sku, quantity, discount)).
SALES = (
    (1, "eun-ji@example.com", "card", "completed", 52, (("TEA-SENCHA-100", 2, "0"), ("CUP-YUNOMI-180", 2, "2.00"))),
    (2, "eun-ji@example.com", "cash", "completed", 51, (("TEA-ASSAM-250", 1, "0"),)),
    (3, "chiara@example.com", "card", "completed", 30, (("POT-KYUSU-300", 1, "6.40"), ("TEA-GYOKURO-50", 1, "0"))),
    (4, "chiara@example.com", "card", "refunded", 28, (("POT-IRON-600", 1, "0"),)),
    (
        5,
        "gabriel@example.com",
        "voucher",
        "completed",
        6,
        (("TEA-MATCHA-30", 1, "0"), ("ACC-WHISK-100", 1, "0"), ("ACC-SCOOP-1", 1, "1.00")),
    ),
    (6, "gabriel@example.com", "cash", "completed", 2, (("ACC-FILTER-100", 3, "0"), ("TEA-ROOIBOS-100", 1, "0"))),
)


def product_id(sku: str) -> UUID:
    """Return the id of the development product with that SKU."""
    return uuid5(NAMESPACE_URL, f"urn:pshop:product:{sku}")


def sale_id(number: int) -> UUID:
    """Return the id of the development sale of that number."""
    return uuid5(NAMESPACE_URL, f"urn:pshop:sale:{number}")


def seed(connection: psycopg.Connection[Any]) -> None:
    """Insert products, stock and sales; what is already there stays as it is."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO products (id, sku, name, description, category, price) VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            [(product_id(sku), sku, *rest, Decimal(price)) for sku, *rest, price, _, _ in PRODUCTS],
        )
        # By SKU here and below: where a developer has made the product by hand, it has another id.
        cursor.executemany(
            "INSERT INTO inventory (product_id, quantity, reorder_level) SELECT id, %s, %s FROM products WHERE sku = %s"
            " ON CONFLICT DO NOTHING",
            [(quantity, reorder_level, sku) for sku, *_, quantity, reorder_level in PRODUCTS],
        )
        # WHERE NOT EXISTS and not ON CONFLICT, which would use up a receipt number for every row it skips.
        cursor.executemany(
            "INSERT INTO sales (id, user_id, payment_method, status, sold_at)"
            " SELECT %(id)s, %(user)s, %(payment)s, %(status)s, now() - make_interval(hours => %(hours)s)"
            " WHERE NOT EXISTS (SELECT FROM sales WHERE id = %(id)s)",
            [
                {
                    "id": sale_id(number),
                    "user": user_id(email),
                    "payment": payment,
                    "status": status,
                    "hours": hours,
                }
                for number, email, payment, status, hours, _ in SALES
            ],
        )
        cursor.executemany(
            "INSERT INTO sale_items (sale_id, line_number, product_id, quantity, unit_price, discount)"
            " SELECT %(sale)s, %(line)s, id, %(quantity)s, price, %(discount)s FROM products WHERE sku = %(sku)s"
            " AND NOT EXISTS (SELECT FROM sale_items WHERE sale_id = %(sale)s AND line_number = %(line)s)",
            [
                {
                    "sale": sale_id(number),
                    "line": line,
                    "sku": sku,
                    "quantity": quantity,
                    "discount": Decimal(discount),
                }
                for number, *_, lines in SALES
                for line, (sku, quantity, discount) in enumerate(lines, start=1)
            ],
        )
