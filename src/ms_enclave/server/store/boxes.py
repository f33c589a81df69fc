"""Sandboxes in the store: which there are, so that none is lost without a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from ms_enclave.server.store.schema import sandboxes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

__all__ = ["BoxRow", "Place", "add_box", "end_boxes", "list_boxes", "renew_box"]

_MOST_WORDS = 500


@dataclass(frozen=True)
class Place:
    """Whose sandboxes, on which server."""

    node: str
    tenant: str


@dataclass(frozen=True)
class BoxRow:
    """A sandbox as it is remembered."""

    number: int
    id: str
    type: str
    made_at: float
    expires_at: float | None
    lost: str | None


def add_box(
    connection: Connection,
    place: Place,
    name: str,
    kind: str,
    *,
    made_at: float,
    expires_at: float | None,
) -> int:
    """Remember a sandbox, in the place of one that had its id; gives the number it has here."""
    same = (sandboxes.c.node == place.node) & (sandboxes.c.tenant == place.tenant)
    same &= (sandboxes.c.id == name) & sandboxes.c.ended_at.is_(None)
    connection.execute(update(sandboxes).where(same).values(ended_at=made_at))
    row = insert(sandboxes).values(
        node=place.node, tenant=place.tenant, id=name, type=kind, made_at=made_at,
        expires_at=expires_at,
    )  # fmt: skip
    made = connection.execute(row).inserted_primary_key
    assert made is not None  # noqa: S101 - for the type checker: an insert of one row has one
    return int(made[0])


def renew_box(connection: Connection, number: int, expires_at: float) -> None:
    """It lives until then."""
    row = sandboxes.c.number == number
    connection.execute(update(sandboxes).where(row).values(expires_at=expires_at))


def end_boxes(connection: Connection, ended: Mapping[int, str | None], now: float) -> None:
    """They are no more: by somebody's wish where None, else lost for a reason."""
    for number, lost in ended.items():
        why = None if lost is None else lost[:_MOST_WORDS]
        row = sandboxes.c.number == number
        connection.execute(update(sandboxes).where(row).values(ended_at=now, lost=why))


def list_boxes(connection: Connection, place: Place, lost_after: float) -> list[BoxRow]:
    """Those that should be there, and those that were lost after a moment, oldest first."""
    columns = (
        sandboxes.c.number, sandboxes.c.id, sandboxes.c.type, sandboxes.c.made_at,
        sandboxes.c.expires_at, sandboxes.c.lost,
    )  # fmt: skip
    lately = sandboxes.c.lost.is_not(None) & (sandboxes.c.ended_at > lost_after)
    query = (
        select(*columns)
        .where((sandboxes.c.node == place.node) & (sandboxes.c.tenant == place.tenant))
        .where(sandboxes.c.ended_at.is_(None) | lately)
        .order_by(sandboxes.c.number)
    )
    return [BoxRow(*row) for row in connection.execute(query)]
