"""Name the people that every development database knows.

Their ids follow from their addresses, so that the seeds of all packages speak of the same people without a look into
each other's databases. Needs nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import NAMESPACE_URL, UUID, uuid5


@dataclass(frozen=True, slots=True)
class DevelopmentUser:
    """A person in every development database; `roles` are names of roles."""

    email: str
    name: str
    roles: tuple[str, ...]


# admin may do everything, manager answers for vehicles and stock, member is anybody else.
USERS = (
    DevelopmentUser("ada@example.com", "Ada Okafor", ("admin",)),
    DevelopmentUser("bruno@example.com", "Bruno Ferreira", ("manager",)),
    DevelopmentUser("chiara@example.com", "Chiara Conti", ("manager", "member")),
    DevelopmentUser("dmitri@example.com", "Dmitri Volkov", ("member",)),
    DevelopmentUser("eun-ji@example.com", "Eun-ji Park", ("member",)),
    DevelopmentUser("fatima@example.com", "Fatima El Amrani", ("member",)),
    DevelopmentUser("gabriel@example.com", "Gabriel Lindqvist", ("member",)),
    DevelopmentUser("hana@example.com", "Hana Sato", ("member",)),
)


def user_id(email: str) -> UUID:
    """Return the id of the development user with that address, however it is capitalised.

    >>> user_id("Ada@Example.com")
    UUID('3d21f9ee-d85e-5a10-bda2-dff7da80567a')
    """
    return uuid5(NAMESPACE_URL, f"mailto:{email.lower()}")
