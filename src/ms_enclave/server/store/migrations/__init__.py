"""How a store of any earlier version becomes one of this version. Runs from the wheel: nothing of
it is configured by files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text

from ms_enclave.errors import ConfigError
from ms_enclave.server.store.schema import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["upgrade"]

_FOLDER = Path(__file__).parent
_LOCK = 0x6D73_656E  # anything: nobody else's on a database of ours


def upgrade(connection: Connection) -> None:
    """Bring the tables to what this version has, within the connection's transaction.

    Raises:
        ConfigError: a newer version of ours has made them.
    """
    if connection.dialect.name == "postgresql":  # one server at a time; SQLite has one writer
        for bound in ("statement_timeout", "lock_timeout"):  # which a large table may need longer
            connection.execute(text(f"SET LOCAL {bound} = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    scripts = ScriptDirectory(str(_FOLDER))

    def steps(revision: Any, context: Any) -> Any:
        del context
        return scripts._upgrade_revs("head", revision)  # pyright: ignore[reportPrivateUsage]

    with EnvironmentContext(Config(), scripts, fn=steps) as environment:
        environment.configure(connection=connection, target_metadata=metadata)
        try:
            environment.run_migrations()
        except CommandError as error:
            raise ConfigError(
                f"this store was made by another version of ms-enclave ({error})",
                remedy="use a version that is at least as new, or another store",
            ) from None
