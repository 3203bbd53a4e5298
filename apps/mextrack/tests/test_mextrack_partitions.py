"""How the monthly partitions of ``tracking_data`` come about."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from threading import Timer
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors

from mextrack.partitions import Month, make_months, months

Connection = psycopg.Connection[Any]

# Far from any month that a seed or a nightly run could have made.
TODAY = date(2031, 11, 23)
FIRST = datetime(2031, 12, 1, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)


def add_vehicle(connection: Connection) -> UUID:
    """Insert a vehicle and return its id."""
    row = connection.execute(
        "INSERT INTO vehicles (user_id, registration, make, model) VALUES (%s, 'ZZ-99-ZZ', 'Ford', 'Transit')"
        " RETURNING id",
        [uuid4()],
    ).fetchone()
    assert row is not None
    vehicle: UUID = row[0]
    return vehicle


def add_positions(connection: Connection, vehicle: UUID, *moments: datetime) -> None:
    """Insert a position of `vehicle` at each moment."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO tracking_data (vehicle_id, recorded_at, latitude, longitude, speed_kmh)"
            " VALUES (%s, %s, 41.1, -8.6, 30)",
            [(vehicle, moment) for moment in moments],
        )


def places(connection: Connection, vehicle: UUID) -> dict[datetime, str]:
    """Return in which partition each position of `vehicle` lies."""
    rows = connection.execute(
        "SELECT recorded_at, tableoid::regclass::text FROM tracking_data WHERE vehicle_id = %s", [vehicle]
    ).fetchall()
    return {moment.astimezone(UTC): partition for moment, partition in rows}


def test_months_are_made_from_todays_on(connection: Connection) -> None:
    """Today's month and those ahead are made, over the turn of the year, and their names returned in order."""
    assert make_months(connection, 2, TODAY) == [
        "tracking_data_y2031m11",
        "tracking_data_y2031m12",
        "tracking_data_y2032m01",
    ]


def test_months_that_are_there_are_not_made_again(connection: Connection) -> None:
    """A second call makes nothing, and one that looks further ahead only what is missing."""
    make_months(connection, 1, TODAY)
    assert make_months(connection, 1, TODAY) == []
    assert make_months(connection, 2, TODAY) == ["tracking_data_y2032m01"]


def test_positions_go_to_their_month(connection: Connection) -> None:
    """A position lies in the partition of its month, and in the default one where its month has none."""
    make_months(connection, 0, FIRST.date())
    vehicle = add_vehicle(connection)
    add_positions(connection, vehicle, FIRST - MOMENT, FIRST, Month(2031, 12).end - MOMENT, Month(2031, 12).end)
    assert places(connection, vehicle) == {
        FIRST - MOMENT: "tracking_data_default",
        FIRST: "tracking_data_y2031m12",
        Month(2031, 12).end - MOMENT: "tracking_data_y2031m12",
        Month(2031, 12).end: "tracking_data_default",
    }


@pytest.mark.parametrize("time_zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago", "Asia/Kathmandu"])
def test_months_begin_at_midnight_utc(connection: Connection, time_zone: str) -> None:
    """Where a month begins does not depend on the time zone of the session that makes it."""
    connection.execute("SELECT set_config('TimeZone', %s, true)", [time_zone])
    make_months(connection, 0, FIRST.date())
    connection.execute("SET LOCAL TimeZone = 'UTC'")
    row = connection.execute(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'tracking_data_y2031m12'"
    ).fetchone()
    assert row == ("FOR VALUES FROM ('2031-12-01 00:00:00+00') TO ('2032-01-01 00:00:00+00')",)


def test_rows_of_the_default_partition_move_to_their_month(connection: Connection) -> None:
    """What the default partition took meanwhile moves, whole; what is of no new month stays."""
    vehicle = add_vehicle(connection)
    november = [FIRST - timedelta(minutes=minute) for minute in range(1, 500)]
    december = [FIRST + timedelta(minutes=minute) for minute in range(500)]
    february = [datetime(2032, 2, 1, tzinfo=UTC)]
    add_positions(connection, vehicle, *november, *december, *february)
    before = connection.execute("SELECT row::text FROM tracking_data AS row ORDER BY 1").fetchall()

    make_months(connection, 1, TODAY)

    assert connection.execute("SELECT row::text FROM tracking_data AS row ORDER BY 1").fetchall() == before
    assert places(connection, vehicle) == {
        **dict.fromkeys(november, "tracking_data_y2031m11"),
        **dict.fromkeys(december, "tracking_data_y2031m12"),
        **dict.fromkeys(february, "tracking_data_default"),
    }


def test_rows_move_with_columns_that_came_later(connection: Connection) -> None:
    """A column of a later revision moves as well, also after one was dropped."""
    vehicle = add_vehicle(connection)
    connection.execute("ALTER TABLE tracking_data DROP COLUMN heading, ADD COLUMN note text")
    add_positions(connection, vehicle, FIRST)
    connection.execute("UPDATE tracking_data SET note = 'kept' WHERE vehicle_id = %s", [vehicle])
    make_months(connection, 0, FIRST.date())
    assert connection.execute("SELECT vehicle_id, note, speed_kmh FROM tracking_data_y2031m12").fetchall() == [
        (vehicle, "kept", 30)
    ]


def test_failure_leaves_everything_where_it_was(connection: Connection) -> None:
    """If one month cannot be made, none is, and no row has moved."""
    vehicle = add_vehicle(connection)
    add_positions(connection, vehicle, FIRST)
    connection.execute("CREATE TABLE tracking_data_y2032m01 ()")
    with pytest.raises(errors.DuplicateTable):
        make_months(connection, 2, TODAY)
    assert places(connection, vehicle) == {FIRST: "tracking_data_default"}
    assert connection.execute("SELECT to_regclass('tracking_data_y2031m12')").fetchone() == (None,)


def test_partition_is_as_the_table_is(connection: Connection) -> None:
    """A month has the key, the foreign key, the checks and the index of the table, and refuses what it refuses."""
    make_months(connection, 0, FIRST.date())
    kinds = "SELECT contype, count(*) FROM pg_constraint WHERE conrelid = %s::regclass AND contype <> 'n' GROUP BY 1"
    assert (
        connection.execute(f"{kinds} ORDER BY 1", ["tracking_data_y2031m12"]).fetchall()
        == connection.execute(f"{kinds} ORDER BY 1", ["tracking_data"]).fetchall()
    )
    loose = connection.execute(
        "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
        " WHERE indrelid = 'tracking_data_y2031m12'::regclass AND NOT relispartition"
    ).fetchall()
    assert loose == []
    with pytest.raises(errors.ForeignKeyViolation), connection.transaction():
        add_positions(connection, uuid4(), FIRST)


def test_callers_at_the_same_time_wait_for_one_another(connection: Connection) -> None:
    """While one caller makes months another waits; the lock is held until the first one's transaction ends."""
    make_months(connection, 0, TODAY)
    info = connection.info
    with psycopg.connect(info.dsn, password=info.password) as other:
        other.execute("SET lock_timeout = '100ms'")
        with pytest.raises(errors.LockNotAvailable):
            make_months(other, 0, TODAY)


def test_reader_in_the_way_is_waited_for(connection: Connection) -> None:
    """Who reads the default partition in a long transaction delays the caller and does not make it fail."""
    connection.execute("SELECT")
    info = connection.info
    with psycopg.connect(info.dsn, password=info.password) as other:
        other.execute("SELECT FROM tracking_data_default")
        leave = Timer(0.4, other.rollback)
        leave.start()
        assert make_months(connection, 0, TODAY) == ["tracking_data_y2031m11"]
        leave.join()


def test_callers_lock_timeout_stays(connection: Connection) -> None:
    """What the caller has set for locks holds after the call as before it."""
    connection.execute("SET LOCAL lock_timeout = '7s'")
    assert make_months(connection, 0, TODAY)
    assert connection.execute("SHOW lock_timeout").fetchone() == ("7s",)


def test_negative_ahead_is_refused(connection: Connection) -> None:
    """A number of months below zero is an error and not an empty answer."""
    with pytest.raises(ValueError, match="ahead is -1"):
        make_months(connection, -1, TODAY)


@given(today=st.dates(max_value=date(9000, 1, 1)), ahead=st.integers(0, 60))
def test_months_follow_one_another_without_a_gap(today: date, ahead: int) -> None:
    """Months begin with today's, are as many as asked for, and each begins where the one before ends."""
    found = list(months(today, ahead))
    assert len(found) == ahead + 1
    assert (found[0].year, found[0].month) == (today.year, today.month)
    assert all(one.end == other.start for one, other in pairwise(found))
    assert all(month.start.day == 1 and month.start.utcoffset() == timedelta(0) for month in found)


@given(moment=st.datetimes(max_value=datetime(9000, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis wants it naive
def test_every_moment_lies_in_its_own_month(moment: datetime) -> None:
    """A moment lies between the bounds of the month that its UTC date names."""
    (month,) = months(moment.date(), 0)
    assert month.start <= moment < month.end


@given(one=st.dates(), other=st.dates())
def test_names_of_months_are_distinct_and_sort_by_time(one: date, other: date) -> None:
    """Two names are the same, or ordered as the months are."""
    first, second = Month(one.year, one.month), Month(other.year, other.month)
    assert (first.name < second.name) == (first.start < second.start)
    assert (first.name == second.name) == (first == second)
