"""Own the shop's data: products, what is in stock, what was sold (database ``pshop_db``).

`pshop.models` holds the tables.
"""
