"""What the tables of mextrack refuse and keep true."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors, sql

from atriz_database.model import references
from mextrack.models import Base

Connection = psycopg.Connection[Any]

LONG_AGO = datetime(2020, 2, 29, 12, tzinfo=UTC)


def add_vehicle(connection: Connection, registration: str = "ZZ-99-ZZ", **values: object) -> UUID:
    """Insert a vehicle with `values` in further columns and return its id."""
    columns = {"user_id": uuid4(), "registration": registration, "make": "Ford", "model": "Transit", **values}
    row = connection.execute(
        sql.SQL("INSERT INTO vehicles ({}) VALUES ({}) RETURNING id").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join([sql.Placeholder()] * len(columns))
        ),
        list(columns.values()),
    ).fetchone()
    assert row is not None
    vehicle: UUID = row[0]
    return vehicle


def add_position(connection: Connection, vehicle: UUID, recorded_at: datetime = LONG_AGO, **values: object) -> None:
    """Insert a position of `vehicle` with `values` in further columns."""
    columns = {"vehicle_id": vehicle, "recorded_at": recorded_at, "latitude": 41.1, "longitude": -8.6, **values}
    connection.execute(
        sql.SQL("INSERT INTO tracking_data ({}) VALUES ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join([sql.Placeholder()] * len(columns))
        ),
        list(columns.values()),
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("vin", "WF0EXXTTREPA0100"),
        ("vin", "WF0EXXTTREPA0100O"),
        ("model_year", 1890),
        ("fuel", "coal"),
        ("registration", " "),
    ],
)
def test_vehicle_refuses(connection: Connection, column: str, value: Any) -> None:
    """A number too short or with an O in it, a coach, a steam engine and a blank plate are refused."""
    with pytest.raises(errors.CheckViolation), connection.transaction():
        add_vehicle(connection, **{column: value})


@pytest.mark.parametrize(("column", "value"), [("registration", "AB-12-CD"), ("vin", "WF0EXXTTREPA01009")])
def test_vehicle_is_known_by_one_plate_and_one_number(connection: Connection, column: str, value: str) -> None:
    """Two vehicles cannot share a plate or a vehicle identification number."""
    add_vehicle(connection, **{"registration": "ONE", column: value})
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        add_vehicle(connection, **{"registration": "TWO", column: value})


def test_updated_at_of_vehicle_follows_each_change(connection: Connection) -> None:
    """A change sets updated_at to now, also against a writer who says otherwise."""
    vehicle = add_vehicle(connection, updated_at=LONG_AGO)
    changed = connection.execute(
        "UPDATE vehicles SET updated_at = %s WHERE id = %s RETURNING updated_at = now()", [LONG_AGO, vehicle]
    ).fetchone()
    assert changed == (True,)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("latitude", 90.000001),
        ("latitude", -90.000001),
        ("latitude", float("nan")),
        ("latitude", float("inf")),
        ("longitude", 180.000001),
        ("longitude", -180.000001),
        ("longitude", float("nan")),
        ("speed_kmh", -0.1),
        ("speed_kmh", float("nan")),
        ("heading", 360),
        ("heading", -1),
    ],
)
def test_position_that_is_nowhere_is_refused(connection: Connection, column: str, value: Any) -> None:
    """A place off the globe, a negative speed and a direction off the compass are refused, and so is NaN."""
    vehicle = add_vehicle(connection)
    with pytest.raises(errors.CheckViolation), connection.transaction():
        add_position(connection, vehicle, **{column: value})


@pytest.mark.parametrize(("latitude", "longitude"), [(90, 180), (-90, -180), (0, 0)])
def test_edges_of_the_globe_are_places(connection: Connection, latitude: float, longitude: float) -> None:
    """Poles and the date line are places like any other."""
    add_position(connection, add_vehicle(connection), latitude=latitude, longitude=longitude)


def test_vehicle_is_at_one_place_at_a_time(connection: Connection) -> None:
    """A second position of a vehicle at the same moment is refused, and that of another vehicle is not."""
    vehicle = add_vehicle(connection)
    add_position(connection, vehicle)
    add_position(connection, add_vehicle(connection, "OTHER"))
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        add_position(connection, vehicle)


def test_position_is_of_a_vehicle(connection: Connection) -> None:
    """A position of a vehicle that does not exist is refused."""
    with pytest.raises(errors.ForeignKeyViolation), connection.transaction():
        add_position(connection, uuid4())


def test_positions_go_with_their_vehicle(connection: Connection) -> None:
    """Deleting a vehicle deletes its positions."""
    vehicle = add_vehicle(connection)
    add_position(connection, vehicle)
    connection.execute("DELETE FROM vehicles WHERE id = %s", [vehicle])
    assert connection.execute("SELECT FROM tracking_data WHERE vehicle_id = %s", [vehicle]).fetchall() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(recorded_at=st.datetimes(timezones=st.just(UTC)))
def test_no_moment_is_refused(connection: Connection, recorded_at: datetime) -> None:
    """Whenever a position was recorded, there is a partition that takes it."""
    with connection.transaction(force_rollback=True):
        vehicle = add_vehicle(connection)
        add_position(connection, vehicle, recorded_at)
        row = connection.execute("SELECT recorded_at FROM tracking_data WHERE vehicle_id = %s", [vehicle]).fetchone()
        assert row == (recorded_at,)


def test_user_ids_of_vehicles_are_declared_as_references() -> None:
    """The user_id of a vehicle is declared as a user of core, so that tools can follow it."""
    assert [str(reference) for reference in references(Base.metadata)] == ["vehicles.user_id -> core.users.id"]
