"""The audit log in the store: who did what, when, to what, and what came of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from ms_enclave.server.audit import Ending
from ms_enclave.server.store.schema import audit

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from ms_enclave.server.audit import Entry, Refusal

__all__ = ["add_entry", "end_entry", "forget_entries", "list_entries", "write_outcome"]


def add_entry(connection: Connection, entry: Entry) -> int:
    """Write it down; gives its number."""
    made = connection.execute(insert(audit).values(**asdict(entry))).inserted_primary_key
    assert made is not None  # noqa: S101 - for the type checker: an insert of one row has one
    return int(made[0])


def end_entry(connection: Connection, ending: Ending) -> None:
    """Write down what came of it."""
    said: dict[str, Any] = {"outcome": ending.outcome, "seconds": ending.seconds}
    if ending.sandbox is not None:
        said["sandbox"] = ending.sandbox
    connection.execute(update(audit).where(audit.c.number == ending.number).values(**said))


def write_outcome(connection: Connection, what: Ending | Refusal) -> None:
    """Write down what came of a call, or that it was refused."""
    if isinstance(what, Ending):
        end_entry(connection, what)
    else:
        end_entry(connection, Ending(add_entry(connection, what.entry), what.outcome, 0.0))


def forget_entries(connection: Connection, before: float) -> None:
    """Forget what is older."""
    connection.execute(delete(audit).where(audit.c.at < before))


def list_entries(
    connection: Connection,
    *,
    tenant: str | None = None,
    sandbox: str | None = None,
    before: int | None = None,
    most: int = 1000,
) -> list[dict[str, Any]]:
    """The last entries, oldest first; of a tenant, about a sandbox, or before a number where one is
    given."""
    query = select(audit).order_by(audit.c.number.desc()).limit(most)
    if tenant is not None:
        query = query.where(audit.c.tenant == tenant)
    if sandbox is not None:
        query = query.where(audit.c.sandbox == sandbox)
    if before is not None:
        query = query.where(audit.c.number < before)
    return [dict(row) for row in connection.execute(query).mappings()][::-1]
