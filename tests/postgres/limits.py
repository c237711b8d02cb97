"""Stores that wait less long than others."""

from durable_postgres import PostgresStore
from durable_postgres._connections import Limits


def with_limits(**seconds: float) -> type[PostgresStore]:
    """Make a class of stores with limits of its own."""

    class Hasty(PostgresStore):
        _limits = Limits(**seconds)

    return Hasty
