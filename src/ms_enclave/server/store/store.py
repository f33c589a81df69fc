"""The database: opened, brought up to date, asked from worker threads, and gone now and then."""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
from sqlalchemy import URL, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
    SQLAlchemyError,
)

from ms_enclave.errors import ConfigError, StoreUnavailableError
from ms_enclave.loop import on_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

__all__ = ["Store", "settle_url"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_AT_ONCE = 8
"""Connections, and threads that use them."""
_WAIT_SECONDS = 5
"""For a connection, for the database to take it, and for another writer."""
_QUEUE_SECONDS = 20
"""For a thread, where others wait for a database that does not answer."""
_PATIENCE = {
    "connect_timeout": _WAIT_SECONDS, "tcp_user_timeout": 1000 * _WAIT_SECONDS,
    "keepalives_idle": _WAIT_SECONDS, "keepalives_interval": 1, "keepalives_count": 3,
}  # fmt: skip
"""With a PostgreSQL that is not reached any more."""
_DRIVERS = {
    "sqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


class Store:
    """The server's database. Every question is a transaction of its own.

    Args:
        url: a file for SQLite, or an address as `postgresql://user@host/name`.

    Raises:
        ConfigError: it is neither, or what is there is no store of ours.
        StoreUnavailableError: it cannot be reached.
        ModuleNotFoundError: PostgreSQL's client is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = settle_url(url)
        self._writes: Engine = _make_engine(self.url)
        self._reads = self._writes.execution_options(reads=True)
        self._limit: anyio.CapacityLimiter | None = None
        from ms_enclave.server.store.migrations import upgrade

        try:
            if self.path is not None:
                _make_file(self.path)
            self.write(lambda connection: _unbounded(connection, upgrade))
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str | None:
        """Its file; None where it has none of its own."""
        return self.url.database if self.url.drivername == "sqlite" else None

    def read(self, work: Callable[[Connection], T]) -> T:
        """Ask something. Blocks, for 15 seconds at most where the database does not answer.

        Raises:
            StoreUnavailableError: it did not.
        """
        return self._do(self._reads, work)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Change something, whole or not at all; otherwise as `read`."""
        return self._do(self._writes, work)

    @on_loop
    async def reading(self, work: Callable[[Connection], T]) -> T:
        """The same as `read`, from a worker thread."""
        return await self._in_thread(self.read, work)

    @on_loop
    async def writing(self, work: Callable[[Connection], T]) -> T:
        """The same as `write`, from a worker thread."""
        return await self._in_thread(self.write, work)

    async def _in_thread(self, do: Any, work: Callable[[Connection], T]) -> T:
        if self._limit is None:
            self._limit = anyio.CapacityLimiter(_AT_ONCE)
        answer: list[T] = []
        # For its turn it waits no longer, so that no queue of them grows; once it has a thread,
        # that one waits.
        with anyio.move_on_after(_QUEUE_SECONDS):
            asked = functools.partial(do, work)
            answer.append(await anyio.to_thread.run_sync(asked, limiter=self._limit))
        if not answer:
            raise _unavailable()
        return answer[0]

    def _do(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        try:
            with engine.begin() as connection:
                return work(connection)
        except (IntegrityError, ProgrammingError, DataError):
            raise  # ours
        except (DBAPIError, SQLAlchemyError) as error:
            logger.warning("the store does not answer: %s", _first_line(error))
            raise _unavailable() from error

    def close(self) -> None:
        """Let go of its connections. It may be used again."""
        self._writes.dispose()


def settle_url(text: str) -> URL:
    """Where a store is, of what a person wrote.

    Raises:
        ConfigError: no store can be there.
    """
    if "://" not in text:
        return URL.create("sqlite", database=os.path.abspath(os.path.expanduser(text)))
    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigError("a store is a file, or an address as postgresql://…") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise ConfigError(
            f"no store is reached by {url.drivername}://",
            remedy="give it a file, or an address that begins with postgresql://",
        )
    if driver == "sqlite":
        if not url.database or url.database == ":memory:":
            raise ConfigError("a store that is remembered has a file: sqlite:////path/to/file")
        url = url.set(database=os.path.abspath(url.database), query={})
    return url.set(drivername=driver)


def _make_engine(url: URL) -> Engine:
    more: dict[str, Any] = (
        {"creator": functools.partial(_connect_sqlite, str(url.database))}
        if url.drivername == "sqlite"
        else {"connect_args": _PATIENCE, "pool_pre_ping": True}
    )
    try:
        engine = create_engine(
            url, pool_size=_AT_ONCE, max_overflow=2, pool_timeout=_WAIT_SECONDS,
            hide_parameters=True, **more,
        )  # fmt: skip
    except NoSuchModuleError as error:
        raise ConfigError(str(error)) from None
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"PostgreSQL needs {error.name}; what to do: pip install 'ms-enclave[postgres]'",
            name=error.name,
        ) from None
    if url.drivername == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "do_connect", _connect_postgres)
        event.listen(engine, "connect", _set_up_postgres)
    return engine


def _connect_postgres(dialect: object, record: object, words: Any, options: Any) -> Any:
    from ms_enclave.server.store._postgres import Impatient

    del dialect, record
    return Impatient.connect(*words, **options)


def _unbounded(connection: Connection, work: Callable[[Connection], T]) -> T:
    """Do something that may take a server long before it says anything."""
    bare: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "postgresql":
        bare.is_bounded = False
    try:
        return work(connection)
    finally:
        if connection.dialect.name == "postgresql":
            bare.is_bounded = True


def _unavailable() -> StoreUnavailableError:
    return StoreUnavailableError("the server's store does not answer", remedy="try again")


def _connect_sqlite(path: str) -> sqlite3.Connection:
    # One that is not there now is not to be made anew, empty, in the place of the one that was.
    return sqlite3.connect(
        f"file:{quote(path)}?mode=rw", uri=True, timeout=_WAIT_SECONDS, check_same_thread=False
    )


def _set_up_sqlite(connection: Any, record: object) -> None:
    del record
    connection.isolation_level = None  # we begin by ourselves, below
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _set_up_postgres(connection: Any, record: object) -> None:
    del record
    for name in ("statement_timeout", "lock_timeout"):
        connection.execute(f"SET {name} = '{_WAIT_SECONDS}s'")
    connection.commit()


def _begin_sqlite(connection: Connection) -> None:
    # A writer that has read first could not wait for another writer any more.
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _make_file(path: str) -> None:
    """See that nobody else reads it: hashes are in it, and what tenants do."""
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigError(f"the store {path} cannot be used: {error.strerror}") from error
    state = os.stat(path)
    if state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise ConfigError(
            f"the store {path} must belong to this user and be closed to everybody else",
            remedy=f"chmod 0600 {path}",
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
