"""Own the fleet's data: vehicles and where they were (database ``mextrack_db``).

`mextrack.models` holds the tables, `mextrack.partitions` makes the monthly partitions of ``tracking_data``.
Nothing is imported here: making partitions needs no SQLAlchemy.
"""
