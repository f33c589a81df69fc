"""The audit log: one's own, or everybody's for an admin's key."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from ms_enclave.errors import NotAllowedError
from ms_enclave.server.answers import document
from ms_enclave.server.finding import Who
from ms_enclave.server.v1.said import AuditEntry

__all__ = ["router"]

router = APIRouter(tags=["audit"])

_MOST = 1000


@router.get("/audit", response_model=list[AuditEntry])
async def read_audit(
    who: Who,
    request: Request,
    tenant: Annotated[str | None, Query(max_length=64)] = None,
    sandbox: Annotated[str | None, Query(max_length=64)] = None,
    before: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = _MOST,
) -> Response:
    """The last entries, oldest first; those before a number, to go back. A tenant sees its own; a
    key that was made with `--admin` those of all, and of whom nobody knows."""
    log = request.app.state.audit
    if log is None:
        raise NotAllowedError(
            "this server keeps no audit log", remedy="it does with a store (--store)"
        )
    if not who.is_admin:
        if tenant not in {None, who.name}:
            raise NotAllowedError("the audit log of others is for the keys of admins")
        tenant = who.name
    return document(await log.read(tenant=tenant, sandbox=sandbox, before=before, most=limit))
