"""The part of a sandbox that is about snapshots."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import anyio.to_thread

from ms_enclave.boxes._life import Life
from ms_enclave.boxes._snapshot_plan import validate_snapshot_name
from ms_enclave.errors import CapabilityError
from ms_enclave.loop import on_loop

if TYPE_CHECKING:
    from ms_enclave.boxes._snapshot_store import SnapshotStore
    from ms_enclave.model import SnapshotInfo

__all__ = ["SnapshotMethods"]


class SnapshotMethods(Life):
    """`snapshot`, and where it goes."""

    _snapshots: SnapshotStore | None = None
    """Its manager's; None for one that no manager made."""

    @abstractmethod
    async def _require(self, capability: str) -> None:
        """Refuse what the box cannot do. Raises CapabilityError."""

    @on_loop
    async def snapshot(self, name: str) -> SnapshotInfo:
        """Keep its files, those of its working folder and of /tmp, for new sandboxes to begin with.

        Files only: no kernel, no variables, nothing that runs; in the folders no pipes, sockets and
        extended attributes. It stands still for the moment in which they are copied, where control
        groups allow; else what changes meanwhile may be half written. It may be paused. A snapshot
        outlives its sandbox and the manager; `create_sandbox` begins with one where the config's
        `snapshot` names it.

        Args:
            name: 1 to 128 letters, digits, dots, `_` or `-`, the first a letter or a digit.

        Raises:
            CapabilityError: this kind of sandbox has none.
            ConfigError: the name is none, or there is a snapshot of that name.
            ForkRefusedError: its files are more than 1 GiB or 20,000, or too deep.
            SnapshotStoreError: they cannot be stored; nothing is left of it.
        """
        validate_snapshot_name(name)
        await self._require("snapshot")
        return await self._snapshot(name)

    async def _snapshot(self, name: str) -> SnapshotInfo:
        """Make one. Only where there is the capability."""
        del name
        raise CapabilityError("snapshot")

    async def _find_snapshots(self) -> SnapshotStore:
        from ms_enclave.boxes import _snapshot_store as stores  # few want one

        if self._snapshots is None:
            folder = await anyio.to_thread.run_sync(stores.users_folder)
            self._snapshots = stores.SnapshotStore(folder)
        return self._snapshots
