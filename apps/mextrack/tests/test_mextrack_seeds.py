"""What a seeded database of mextrack holds."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import psycopg
import pytest

from atriz_core.development import USERS, user_id

Connection = psycopg.Connection[Any]

SEEDS = Path(__file__).parents[1] / "seeds"


def run_seeds(connection: Connection) -> None:
    """Run the seeds as ``atriz seed`` does."""
    for path in sorted(SEEDS.glob("*.py")):
        runpy.run_path(str(path))["seed"](connection)


def content(connection: Connection) -> list[Any]:
    """Return every row of every table, and what partitions there are."""
    return connection.execute(
        "SELECT row::text FROM vehicles AS row UNION ALL SELECT row::text FROM tracking_data AS row"
        " UNION ALL SELECT inhrelid::regclass::text FROM pg_inherits ORDER BY 1"
    ).fetchall()


@pytest.mark.seeded
def test_each_vehicle_has_a_day_of_positions(connection: Connection) -> None:
    """Five vehicles have a position a minute for the last 24 hours, none of them in the future."""
    rows = connection.execute(
        "SELECT count(*), max(recorded_at) - min(recorded_at) = interval '1 day - 1 minute', max(recorded_at) <= now()"
        " FROM tracking_data GROUP BY vehicle_id"
    ).fetchall()
    assert rows == [(24 * 60, True, True)] * 5


@pytest.mark.seeded
def test_seeded_positions_lie_in_monthly_partitions(connection: Connection) -> None:
    """The seeds make the months they need: the default partition stays empty."""
    assert connection.execute("SELECT count(*) FROM tracking_data_default").fetchone() == (0,)


@pytest.mark.seeded
def test_vehicles_are_of_development_users(connection: Connection) -> None:
    """Who answers for a vehicle is a development user of core."""
    owners = {row[0] for row in connection.execute("SELECT user_id FROM vehicles").fetchall()}
    assert owners
    assert owners <= {user_id(user.email) for user in USERS}


@pytest.mark.seeded
def test_vehicles_move_by_day_and_rest_at_night(connection: Connection) -> None:
    """A vehicle that moves has the speed that its positions tell, give or take the play of the wheel."""
    row = connection.execute(
        """
        SELECT bool_and(speed_kmh = 0) FILTER (WHERE hour NOT BETWEEN 6 AND 19),
               bool_and(speed_kmh > 0) FILTER (WHERE hour BETWEEN 6 AND 19),
               max(abs(speed_kmh - km * 60)) FILTER (WHERE hour BETWEEN 6 AND 19 AND before BETWEEN 6 AND 19)
        FROM (
            SELECT speed_kmh, hour, lag(hour) OVER track AS before,
                   111.3 * sqrt((latitude - lag(latitude) OVER track) ^ 2
                       + ((longitude - lag(longitude) OVER track) * cos(radians(latitude))) ^ 2) AS km
            FROM tracking_data, LATERAL (SELECT extract(hour FROM recorded_at AT TIME ZONE 'UTC') AS hour) AS clock
            WINDOW track AS (PARTITION BY vehicle_id ORDER BY recorded_at)
        ) AS steps
        """
    ).fetchone()
    assert row is not None
    assert row[:2] == (True, True)
    assert row[2] < 8


@pytest.mark.seeded
def test_mextrack_seeds_twice_change_nothing(connection: Connection) -> None:
    """A second run of the seeds inserts nothing and changes nothing."""
    before = content(connection)
    run_seeds(connection)
    assert content(connection) == before


@pytest.mark.seeded
def test_mextrack_seeds_of_another_day_add_no_day(connection: Connection) -> None:
    """Seeds run again the day after insert nothing: a day of positions stays a day."""
    # A fifth of a second is as good as waiting a day: the positions are made older instead.
    connection.execute("UPDATE tracking_data SET recorded_at = recorded_at - interval '26 hours'")
    before = connection.execute("SELECT row::text FROM tracking_data AS row ORDER BY 1").fetchall()
    run_seeds(connection)
    assert connection.execute("SELECT row::text FROM tracking_data AS row ORDER BY 1").fetchall() == before


def test_mextrack_seeds_leave_a_developers_own_vehicle_alone(connection: Connection) -> None:
    """Where a developer has made a vehicle of that plate by hand, theirs stays and gets the positions."""
    row = connection.execute(
        "INSERT INTO vehicles (user_id, registration, make, model)"
        " VALUES (gen_random_uuid(), 'AA-12-BC', 'Mine', 'Own') RETURNING id"
    ).fetchone()
    assert row is not None
    run_seeds(connection)
    assert connection.execute("SELECT count(*) FROM vehicles WHERE registration = 'AA-12-BC'").fetchone() == (1,)
    positions = connection.execute("SELECT count(*) FROM tracking_data WHERE vehicle_id = %s", row).fetchone()
    assert positions == (24 * 60,)
