"""What others do to our containers: an engine's events, heard once for all sandboxes of a process.

The stream is opened with the first container that is followed and closed with the last. When it
breaks it is opened again, and what was missed meanwhile is found by looking at what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import anyio

from ms_enclave.errors import EnclaveError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

__all__ = ["ACTIONS", "Story", "Watch", "is_own_end"]

logger = logging.getLogger(__name__)

ACTIONS = ("die", "died", "destroy", "kill", "oom", "pause", "remove")
"""What is worth hearing of. Podman says `died` and `remove` for `die` and `destroy`."""

_PAUSED = "The sandbox's container was paused by somebody else, so nothing in it answers"
_REMOVED = "The sandbox's container was removed by somebody else"
_ENDED = "The sandbox's container has ended with status"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


def is_own_end(reason: str) -> bool:
    """Whether a container's end was nobody's doing but its first process's, as far as is known: one
    that is only seen to be gone may have been removed because it had ended."""
    return reason == _REMOVED or reason.startswith(_ENDED)


class Story:
    """What was heard of one container, and what that means. Pure."""

    def __init__(self) -> None:
        self.is_ours = False
        """Whether we have it stand still: from before we ask for that until it goes on."""
        self.changes = 0
        """How often we have changed that."""
        self.doubted = False
        """Whether only its state can tell what was heard: an event may be of long ago."""
        self._signal = ""
        self._short_of_memory = False

    def change(self, is_ours: bool) -> None:
        """We are about to have it stand still, or it goes on again."""
        self.is_ours = is_ours
        self.changes += 1

    def hear(self, action: str, attributes: Mapping[str, str]) -> str | None:
        """Take in an event; gives why the container is of no use any more, if it is not."""
        action = action.partition(":")[0]
        if action == "pause":
            self.doubted = not self.is_ours
        elif action in ("destroy", "remove"):
            return _REMOVED
        elif action in ("die", "died"):
            return self._end(attributes.get("exitCode", "?"))
        elif action == "kill":
            self._signal = attributes.get("signal", "?")
        elif action == "oom":
            self._short_of_memory = True
        return None

    def see(self, state: str | None, changes: int) -> str | None:
        """The same for its state as it is seen, None for one that is not there; it was asked for
        after so many changes of ours."""
        self.doubted = False
        if state is None:
            return _REMOVED
        if state == "paused" and not self.is_ours:
            self.doubted = changes != self.changes
            return None if self.doubted else _PAUSED
        return self._end("?") if state in ("exited", "dead", "removing") else None

    def _end(self, status: str) -> str:
        if self._signal:
            return f"The sandbox's container was killed by somebody else (signal {self._signal})"
        if self._short_of_memory:
            return "The sandbox's container has ended: its memory was used up"
        return f"{_ENDED} {status}"


class _Followed:
    def __init__(self, tell: Callable[[str], object]) -> None:
        self.story = Story()
        self.tell = tell
        self.reason: str | None = None
        self.told = anyio.Event()

    def take(self, reason: str | None) -> None:
        if reason is not None and self.reason is None:
            self.reason = reason
            self.told.set()
            self.tell(reason)


class Watch:
    """Tells of each followed container, once, why it is of no use any more.

    Args:
        events: opens the stream; its first item stands for its being open.
        states: the state of every container that there is, by id; it may be a little old.
        state: that of one as it is now, None for one that is not there.
    """

    def __init__(
        self,
        events: Callable[[], AsyncGenerator[dict[str, Any], None]],
        states: Callable[[], Awaitable[Mapping[str, str]]],
        state: Callable[[str], Awaitable[str | None]],
    ) -> None:
        self._events = events
        self._states = states
        self._state = state
        self._followed: dict[str, _Followed] = {}
        self._task: asyncio.Task[None] | None = None

    def follow(self, container: str, tell: Callable[[str], object]) -> None:
        """Have somebody told, from the loop, when a container is of no use any more."""
        self._followed[container] = _Followed(tell)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def story_of(self, container: str) -> Story:
        """What was heard of a container so far."""
        followed = self._followed.get(container)
        return Story() if followed is None else followed.story

    def forget(self, container: str) -> None:
        """Tell no more of one: what happens to it from now on is our own doing."""
        self._followed.pop(container, None)
        if not self._followed and self._task is not None:
            self._task.cancel()
            self._task = None

    async def reason(self, container: str, seconds: float) -> str | None:
        """Why a container that seems to have ended is of no use, if that is heard in time."""
        followed = self._followed.get(container)
        if followed is None:
            return None
        with anyio.move_on_after(seconds):
            await followed.told.wait()
        return followed.reason

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                async with contextlib.aclosing(self._events()) as events:
                    async for event in events:
                        pause = _FIRST_PAUSE
                        if event:
                            await self._hear(event)
                        else:
                            await self._look()
            except EnclaveError as error:
                logger.debug("the engine's events cannot be heard: %s", error)
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _hear(self, event: dict[str, Any]) -> None:
        actor: dict[str, Any] = event.get("Actor") or {}
        container = str(actor.get("ID", ""))
        followed = self._followed.get(container)
        if followed is None:
            return
        action = str(event.get("Action", ""))
        followed.take(followed.story.hear(action, actor.get("Attributes") or {}))
        await self._make_sure(container, followed)

    async def _look(self) -> None:
        # One that is made or changed meanwhile may not be among the answers, or not as it is.
        asked = {name: (one, one.story.changes) for name, one in self._followed.items()}
        states = await self._states()
        for container, (followed, changes) in asked.items():
            followed.take(followed.story.see(states.get(container), changes))
            await self._make_sure(container, followed)

    async def _make_sure(self, container: str, followed: _Followed) -> None:
        story = followed.story
        while story.doubted:
            changes = story.changes
            followed.take(story.see(await self._state(container), changes))
