"""The host's end of the guest channel, and what every sandbox means by a process."""

from __future__ import annotations

from ms_enclave.channel.process import Exit, Process, SpawnRequest

__all__ = ["Exit", "Process", "SpawnRequest"]
