"""The host's end of a watch: what a guest says has changed, checked and cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ms_enclave.channel._calls import GuestCalls, clean, joined, load_page, relative
from ms_enclave.guest import protocol
from ms_enclave.model import FileEvent

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncGenerator

__all__ = ["GuestWatch"]

_KINDS = ("watching", "created", "modified", "deleted", "lost")


class GuestWatch(GuestCalls):
    """A part of `GuestConnection`: watching a folder."""

    async def watch(
        self, path: str, *, recursive: bool = False
    ) -> AsyncGenerator[builtins.list[FileEvent], None]:
        """What changes in a folder, some events at a time, until the generator is closed."""
        body = {"op": "watch", "path": path, "recursive": recursive}
        with self._failures(path):
            call = await self._connection.open(body, lasting=True)
            try:
                while data := await call.receive_page():
                    yield [_event(path, entry) for entry in load_page(data)]
                await call.result()
            finally:
                call.close()


def _event(folder: str, entry: list[Any]) -> FileEvent:
    if len(entry) != 3 or entry[1] not in _KINDS or not isinstance(entry[2], bool):
        raise protocol.FrameError("a change that is none")
    path = joined(folder, relative(entry[0])) if entry[0] else clean(folder)
    # Checked here already, and there may be very many of them.
    return FileEvent.model_construct(type=entry[1], path=path, directory=entry[2])
