"""The part of a local manager that is about snapshots."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ms_enclave.boxes._snapshot_plan import validate_snapshot_name
from ms_enclave.boxes._snapshot_store import SnapshotStore, users_folder
from ms_enclave.boxes.files import across_loops
from ms_enclave.loop import iterate_on_loop, on_loop
from ms_enclave.manager._state import snapshots_in
from ms_enclave.manager.base import SandboxManager

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable

    from ms_enclave.model import SnapshotInfo

__all__ = ["LocalSnapshots"]


class LocalSnapshots(SandboxManager):
    """Has snapshots in its `state_dir`, or with all managers of the user that have none."""

    @abstractmethod
    async def _be_running(self) -> None:
        """Start, where it was never started. Raises SandboxStateError where it was stopped."""

    def _snapshot_store(self) -> SnapshotStore:
        state = self.config.state_dir
        folder = users_folder() if state is None else snapshots_in(state)
        return SnapshotStore(folder, self._most_snapshots)

    def _most_snapshots(self) -> int | None:
        """How many there may be; None for any number."""
        return None

    @on_loop
    async def list_snapshots(self) -> list[SnapshotInfo]:
        """The snapshots that there are, by name. See `SandboxManager.list_snapshots`."""
        await self._be_running()
        return await anyio.to_thread.run_sync(self._snapshot_store().list)

    @on_loop
    async def delete_snapshot(self, name: str) -> None:
        """Delete one. See `SandboxManager.delete_snapshot`."""
        await self._be_running()
        await anyio.to_thread.run_sync(self._snapshot_store().delete, name)

    @iterate_on_loop
    async def export_snapshot(self, name: str) -> AsyncGenerator[bytes, None]:
        """One as a tar, in pieces. See `SandboxManager.export_snapshot`."""
        await self._be_running()
        held = await anyio.to_thread.run_sync(self._snapshot_store().hold, name)
        try:
            pieces = held.pieces()
            while (piece := await anyio.to_thread.run_sync(next, pieces, None)) is not None:
                yield piece
        finally:
            held.close()

    async def import_snapshot(self, name: str, tar: bytes | AsyncIterable[bytes]) -> SnapshotInfo:
        """Have a tar as one. See `SandboxManager.import_snapshot`."""
        return await self._import_snapshot(validate_snapshot_name(name), across_loops(tar))

    @on_loop
    async def _import_snapshot(self, name: str, tar: bytes | AsyncIterable[bytes]) -> SnapshotInfo:
        await self._be_running()
        store = self._snapshot_store()
        incoming = await anyio.to_thread.run_sync(store.begin)
        try:
            if isinstance(tar, bytes):
                await anyio.to_thread.run_sync(incoming.write, tar)
            else:
                async for piece in tar:
                    await anyio.to_thread.run_sync(incoming.write, piece)
            return await anyio.to_thread.run_sync(incoming.enter, name)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(incoming.close)
