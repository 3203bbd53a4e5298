"""Seed five vehicles and a day of positions of each, one a minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg
from psycopg.rows import scalar_row

from atriz_core.development import user_id
from mextrack.partitions import make_months

# (address of who answers for it, registration, vin, make, model, model_year, fuel)
VEHICLES = (
    ("bruno@example.com", "AA-12-BC", "WF0EXXTTREPA01001", "Ford", "E-Transit", 2024, "electric"),
    ("bruno@example.com", "AH-40-KM", "VF1MAJ00612345002", "Renault", "Master", 2022, "diesel"),
    ("dmitri@example.com", "BD-77-RT", "YS2P4X20009120003", "Scania", "P 320", 2021, "diesel"),
    ("fatima@example.com", "CC-05-EL", "VR3UHZKXZNT000004", "Peugeot", "e-208", 2023, "electric"),
    ("chiara@example.com", "DX-19-TE", "ZFA25000002E00005", "Fiat", "Ducato", 2020, "diesel"),
)

# registration: (latitude and longitude of the depot, radius of the round in degrees, minutes a round takes)
ROUNDS = {
    "AA-12-BC": (41.1579, -8.6291, 0.045, 95),
    "AH-40-KM": (41.1496, -8.6109, 0.120, 210),
    "BD-77-RT": (56.9496, 24.1052, 0.350, 480),
    "CC-05-EL": (34.0209, -6.8416, 0.030, 60),
    "DX-19-TE": (45.0703, 7.6869, 0.080, 150),
}

# A round starts and ends at the depot, which lies on its southern rim. Vehicles drive from 6 to 20 o'clock UTC and
# stand at the depot otherwise. A degree of latitude is 111.3 km, which gives the speed on the round.
POSITIONS = """
INSERT INTO tracking_data
    (vehicle_id, recorded_at, latitude, longitude, speed_kmh, heading, received_at, altitude_m, satellites)
SELECT
    %(vehicle)s, moment,
    %(latitude)s + %(radius)s * (1 - cos(angle)),
    %(longitude)s + %(radius)s * sin(angle) / cos(radians(%(latitude)s)),
    CASE WHEN driving THEN round((2 * pi() * %(radius)s * 111.3 / %(minutes)s * 60 + 5 * sin(7 * angle))::numeric, 1)
         ELSE 0 END,
    CASE WHEN driving THEN (450 - degrees(angle)::int %% 360) %% 360 ELSE 0 END,
    moment + interval '2 seconds',
    round((60 + 40 * (1 - cos(2 * angle)))::numeric, 1),
    9 + minute %% 5
FROM (
    SELECT moment, minute, driving,
           CASE WHEN driving THEN 2 * pi() * (minute %% %(minutes)s) / %(minutes)s ELSE 0 END AS angle
    FROM (
        SELECT moment, minute, minute >= 6 * 60 AND minute < 20 * 60 AS driving
        FROM generate_series(%(start)s, %(end)s - interval '1 minute', interval '1 minute') AS moment,
             LATERAL (SELECT (extract(hour FROM moment AT TIME ZONE 'UTC') * 60
                              + extract(minute FROM moment AT TIME ZONE 'UTC'))::int AS minute) AS clock
    ) AS minutes
) AS positions
-- One day and never another: a vehicle that has positions has had its day, or is being used for something else.
WHERE NOT EXISTS (SELECT FROM tracking_data WHERE vehicle_id = %(vehicle)s)
"""


def vehicle_id(registration: str) -> UUID:
    """Return the id of the development vehicle with that number plate."""
    return uuid5(NAMESPACE_URL, f"urn:mextrack:vehicle:{registration}")


def seed(connection: psycopg.Connection[Any]) -> None:
    """Insert vehicles and the 24 hours of positions before now; what is already there stays as it is."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        cursor.executemany(
            "INSERT INTO vehicles (id, user_id, registration, vin, make, model, model_year, fuel)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [
                (vehicle_id(registration), user_id(email), registration, *rest)
                for email, registration, *rest in VEHICLES
            ],
        )
        # The server's clock: it is the one that readers of the positions ask with now().
        now: datetime | None = cursor.execute("SELECT date_trunc('minute', now())").fetchone()
        assert now is not None  # a SELECT without FROM has one row
        end = now.astimezone(UTC)
        start = end - timedelta(days=1)
        # From yesterday's month on, which on the first of a month is the one before.
        make_months(connection, ahead=3, today=start.date())
        for registration, (latitude, longitude, radius, minutes) in ROUNDS.items():
            # By number plate: where a developer has made the vehicle by hand, it has another id.
            vehicle = cursor.execute("SELECT id FROM vehicles WHERE registration = %s", [registration]).fetchone()
            cursor.execute(
                POSITIONS,
                {
                    "vehicle": vehicle,
                    "latitude": latitude,
                    "longitude": longitude,
                    "radius": radius,
                    "minutes": minutes,
                    "start": start,
                    "end": end,
                },
            )
