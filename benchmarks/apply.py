"""Floor A: apply folders of SQL files to databases, with psycopg and nothing else.

``python apply.py URL FOLDER [URL FOLDER …]``: one database after the other; each file is a revision with a transaction
of its own, in which its name is written to the version table.
"""

import os
import sys

import psycopg


def main() -> None:
    """Bring each database to the last file of its folder."""
    words = iter(sys.argv[1:])
    for url, folder in zip(words, words, strict=True):
        names = sorted(os.listdir(folder))
        with psycopg.connect(url, autocommit=True) as connection:
            current = _current(connection)
            if current == names[-1]:
                continue
            for name in names[names.index(current) + 1 if current else 0 :]:
                with open(os.path.join(folder, name), "rb") as file:
                    statement = file.read()
                with connection.transaction():
                    connection.execute(statement)
                    connection.execute("UPDATE version SET name = %s", [name])


def _current(connection: psycopg.Connection[tuple[str]]) -> str:
    try:
        (name,) = connection.execute("SELECT name FROM version").fetchone() or ("",)
    except psycopg.errors.UndefinedTable:
        with connection.transaction():
            connection.execute("CREATE TABLE version (name text NOT NULL)")
            connection.execute("INSERT INTO version VALUES ('')")
        return ""
    return name


if __name__ == "__main__":
    main()
