"""The routes of version 1, by subject. Each unpacks, makes one call and returns."""

from __future__ import annotations

from ms_enclave.server.v1 import (
    audit,
    commands,
    files,
    kernels,
    pools,
    ports,
    sandboxes,
    seen,
    snapshots,
    sockets,
)

__all__ = ["ROUTERS"]

ROUTERS = tuple(
    part.router
    for part in (sandboxes, commands, files, kernels, ports, pools, snapshots, seen, audit, sockets)
)
