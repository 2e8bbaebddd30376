"""The driver's errors as perdure's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from perdure.errors import ConfigurationError, IntegrityError, Unavailable

__all__ = ["translated"]


@contextmanager
def translated() -> Iterator[None]:
    """Raise Unavailable, ConfigurationError or IntegrityError in place of what psycopg raises."""
    try:
        yield
    except (errors.UndefinedTable, errors.InvalidSchemaName, errors.UndefinedFunction) as problem:
        raise ConfigurationError("this database holds no log", hint="run perdure init") from problem
    except errors.InsufficientPrivilege as problem:
        raise ConfigurationError(
            f"Postgres: {_first_line(problem)}", hint="give the role the rights that docs/operations name"
        ) from problem
    except (errors.DataCorrupted, errors.IndexCorrupted) as problem:
        raise IntegrityError(f"Postgres: {_first_line(problem)}", hint="check the server's disk, restore from a backup") from problem
    except errors.CheckViolation as problem:
        # Tables have no checks but the bounds of their partitions: a session may not know yet that a segment was attached a moment ago.
        raise Unavailable(f"Postgres: {_first_line(problem)}", hint="the same call with the same event ids is safe to repeat") from problem
    except (errors.ReadOnlySqlTransaction, errors.IdleInTransactionSessionTimeout) as problem:
        # The server has become a standby, or it has thrown out a writer that stood still; a new connection is what helps.
        raise Unavailable(f"Postgres: {_first_line(problem)}", hint="the same call with the same event ids is safe to repeat") from problem
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, PoolClosed, TooManyRequests, OSError) as problem:
        raise Unavailable(f"Postgres: {_first_line(problem)}", hint="the same call with the same event ids is safe to repeat") from problem


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
