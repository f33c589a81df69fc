"""The host's end of the guest channel, and what every sandbox means by a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ms_enclave.channel.process import Exit, Process, SpawnRequest

if TYPE_CHECKING:
    from ms_enclave.channel.guest import GuestConnection, ProtocolError

__all__ = ["Exit", "GuestConnection", "Process", "ProtocolError", "SpawnRequest"]


def __getattr__(name: str) -> object:
    # The process interface is needed everywhere; a connection only where a guest is.
    if name in ("GuestConnection", "ProtocolError"):
        from ms_enclave.channel import guest

        return getattr(guest, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
