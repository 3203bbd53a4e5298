"""Seed a profile and preferences for each of core's development users."""

from __future__ import annotations

from typing import Any

import psycopg

from atriz_core.development import USERS, user_id

# address: (headline, bio, location, avatar_url, website_url, is_public)
PROFILES = {
    "ada@example.com": (
        "Keeps the lights on",
        "Looks after accounts and servers. Sails on weekends, when nothing is on fire.",
        "Lagos",
        "https://images.example.com/people/ada.webp",
        "https://ada.example.com",
        True,
    ),
    "bruno@example.com": (
        "Fleet manager",
        "Knows where the vans are, and mostly why.",
        "Porto",
        "https://images.example.com/people/bruno.webp",
        None,
        True,
    ),
    "chiara@example.com": (
        "Runs the tea shop",
        "Third generation behind the same counter. Oolong before noon, nothing else.",
        "Torino",
        "https://images.example.com/people/chiara.webp",
        "https://tea.example.com",
        True,
    ),
    "dmitri@example.com": ("Night driver", None, "Riga", None, None, False),
    "eun-ji@example.com": (
        "Weekend cashier",
        "Studies hydrology, sells teapots.",
        "Seoul",
        "https://images.example.com/people/eun-ji.webp",
        None,
        False,
    ),
    "fatima@example.com": ("Courier", "Faster by bicycle.", "Rabat", None, None, True),
    "gabriel@example.com": (None, None, None, None, None, False),
    "hana@example.com": ("New here", None, "Sapporo", None, None, False),
}

# address: (theme, language, time_zone, email_notifications, newsletter)
PREFERENCES = {
    "ada@example.com": ("dark", "en", "Africa/Lagos", True, False),
    "bruno@example.com": ("system", "pt", "Europe/Lisbon", True, True),
    "chiara@example.com": ("light", "it", "Europe/Rome", True, True),
    "dmitri@example.com": ("dark", "en", "Europe/Riga", False, False),
    "eun-ji@example.com": ("system", "ko", "Asia/Seoul", True, False),
    "fatima@example.com": ("light", "fr", "Africa/Casablanca", True, True),
    "gabriel@example.com": ("system", "sv", "Europe/Stockholm", False, False),
    "hana@example.com": ("system", "ja", "Asia/Tokyo", True, False),
}


def seed(connection: psycopg.Connection[Any]) -> None:
    """Insert profiles and preferences; what is already there stays as it is."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO user_profiles"
            " (user_id, display_name, headline, bio, location, avatar_url, website_url, is_public)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [(user_id(user.email), user.name, *PROFILES[user.email]) for user in USERS],
        )
        cursor.executemany(
            "INSERT INTO user_preferences (user_id, theme, language, time_zone, email_notifications, newsletter)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [(user_id(user.email), *PREFERENCES[user.email]) for user in USERS],
        )
