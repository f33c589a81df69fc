"""The part of a sandbox that is about forks of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import anyio

from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes._kernel_methods import KernelMethods
from ms_enclave.errors import CapabilityError, EnclaveError, ForkRefusedError
from ms_enclave.loop import on_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from ms_enclave.boxes.base import Sandbox
    from ms_enclave.model import Checkpoint, FileChange

__all__ = ["Family", "ForkMethods"]

logger = logging.getLogger(__name__)

AUTO = "auto"
"""The name of checkpoints that are made before a tool runs."""


@dataclass(frozen=True)
class Family:
    """Who has a sandbox listed, and is to have its forks listed, too."""

    adopting: Callable[[Any], AbstractAsyncContextManager[None]]
    """Has a fork listed, which is started in the block; where that raises it is not. Raises
    SandboxStateError or QuotaExceededError where there is to be no more."""

    disown: Callable[[Any], Awaitable[None]]
    """Ends a fork, and has it listed no longer."""


class ForkMethods(KernelMethods):
    """`fork` and what belongs to it."""

    _owner: str
    _family: Family | None = None

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._turn = anyio.Lock()
        """Of who forks it, keeps it or rolls it back."""

    # --- checkpoints ---

    @on_loop
    async def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Keep how it is now: its kernel, if one lives, and its files; to come back to it.

        It goes on meanwhile. Those of a sandbox end with it. The last `max_checkpoints` of the
        config have the memory of their kernels, older ones the files alone (`Checkpoint.memory`).

        Args:
            name: what it can be called by, beside its id; the last of that name is meant.

        Raises:
            CapabilityError: this kind of sandbox has none.
            ForkRefusedError: something in it cannot be kept; `blockers` name it.
        """
        given = None if name is None else inputs.validate_kernel_name(name)
        async with self._using(), self._turn:
            await self._require("checkpoint")
            return await self._checkpoint(given)

    @on_loop
    async def rollback(self, checkpoint: Checkpoint | str) -> None:
        """Be again as it was: its kernel with all variables, open files and the rest, and its
        files. Whatever runs in it ends, and a kernel that died lives again.

        Of a checkpoint without memory come the files, and its kernels are dead: see `restart`.

        Raises:
            CapabilityError: this kind of sandbox has no checkpoints.
            ConfigError: it has none of that id or name.
        """
        async with self._using(), self._turn:
            await self._require("checkpoint")
            await self._roll_back(str(_name_of(checkpoint)))

    @on_loop
    async def tree(self) -> list[Checkpoint]:
        """Its checkpoints, the oldest first; each names the one before it as its `parent`."""
        async with self._using():
            await self._require("checkpoint")
            return self._list_checkpoints()

    @on_loop
    async def diff(
        self, a: Checkpoint | str, b: Checkpoint | str | None = None
    ) -> list[FileChange]:
        """What differs in its files between two checkpoints, or between one and now, by path.

        Files are compared by what is in them. What is in the kernels' memory is not looked at.

        Args:
            a: the earlier one, or its id or name.
            b: the later one; how it is now where None.

        Raises:
            CapabilityError: this kind of sandbox has no checkpoints.
            ConfigError: it has none of that id or name.
            ForkRefusedError: it has more stored now than is copied at once, or more differs than
                can be told.
        """
        async with self._using(), self._turn:
            await self._require("checkpoint")
            return await self._diff(str(_name_of(a)), _name_of(b))

    async def _diff(self, a: str, b: str | None) -> list[FileChange]:
        """What differs. Only where there is the capability."""
        del a, b
        raise CapabilityError("checkpoint")

    async def _keep_before_tool(self) -> dict[str, Any]:
        """Have a checkpoint before a tool, and what its result says of that.

        A tool is not refused for what is in the way, or a command in the background could never be
        ended by one.
        """
        try:
            return {"checkpoint": (await self.checkpoint(AUTO)).id}
        except ForkRefusedError as error:
            return {"checkpoint_refused": list(error.blockers)}

    async def _checkpoint(self, name: str | None) -> Checkpoint:
        """Make one. Only where there is the capability, as what follows."""
        del name
        raise CapabilityError("checkpoint")

    async def _roll_back(self, name: str) -> None:
        """Be as it was at the one of that id or name."""
        del name
        raise CapabilityError("checkpoint")

    def _list_checkpoints(self) -> list[Checkpoint]:
        raise CapabilityError("checkpoint")

    # --- forks ---

    async def fork(
        self,
        n: int = 1,
        *,
        at: Checkpoint | str | None = None,
        reseed: bool = True,
        unforkable: Literal["refuse", "drop"] = "refuse",
        sandbox_ids: Sequence[str] | None = None,
    ) -> list[Sandbox]:
        """Copies of this sandbox as it is now, each a sandbox of its own: all of them, or none.

        Each has the kernel with its variables, imports and half consumed generators, its folder,
        umask and signal handlers, its open files at the same places, and the sandbox's files as
        they are at this moment. Each has an id, limits, a network and a life of its own, and none
        sees what another one does from now on. Nothing is run again, and this one goes on as it is.
        Needs a sandbox with exactly one kernel, between two cells.

        Args:
            n: how many.
            at: a checkpoint to go on from instead, or its id or name.
            reseed: whether the random generators of `random`, numpy and torch begin anew in each;
                else all go on with the same numbers. Generators that the program made for itself go
                on as they are.
            unforkable: what becomes of descriptors that cannot be had twice (a pipe, a socket, a
                file without a name) and of other processes: with "drop" the copies are without
                them. What is read from such a descriptor or written to it fails there (EBADF), and
                what a process that is left out is writing at the moment may be there in part.
                Memory that is shared, and the like, is refused anyway.
            sandbox_ids: the ids that they are to have, one for each; new ones where None.

        Raises:
            CapabilityError: this kind of sandbox cannot be forked.
            ForkRefusedError: something in it cannot be; `blockers` name it. Nothing has changed.
            ConfigError: `n` is no whole number from 1 on, an id is none or taken, `unforkable` is
                neither, or there is no such checkpoint.
        """
        drop = inputs.validate_unforkable(unforkable) == "drop"
        ids = inputs.fork_ids(n, sandbox_ids)
        made: list[Sandbox] = []
        try:
            return await self._fork_into(
                made, ids, reseed=reseed, at=_name_of(at), drop=drop, new=sandbox_ids is None
            )
        except anyio.get_cancelled_exc_class():
            # It may have been done in the moment in which its caller was cancelled.
            with anyio.CancelScope(shield=True):
                await self._end_forks(made)
            raise

    @on_loop
    async def _fork_into(
        self,
        made: list[Sandbox],
        ids: Sequence[str],
        *,
        reseed: bool,
        at: str | None,
        drop: bool,
        new: bool,
    ) -> list[Sandbox]:
        del new
        try:
            async with self._using(), self._turn:
                await self._require("fork")
                await self._fork(made, ids, reseed=reseed, at=at, drop=drop)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._end_forks(made)
            raise
        return [*made]

    async def _fork(
        self, made: list[Sandbox], ids: Sequence[str], *, reseed: bool, at: str | None, drop: bool
    ) -> None:
        """Make running forks of these ids, appending each as it runs. Only where there is the
        capability.

        Whoever calls ends those that were made where it raises.
        """
        del made, ids, reseed, at, drop
        raise CapabilityError("fork")

    async def _start_fork(self, fork: Sandbox, made: list[Sandbox]) -> None:
        """Start one, and have it listed where this one is."""
        fork._owner = self._owner
        if self._family is None:
            await fork.start()
        else:
            async with self._family.adopting(fork):
                await fork.start()
        made.append(fork)

    @on_loop
    async def _end_forks(self, made: list[Sandbox]) -> None:
        while made:
            fork = made.pop()
            try:
                await (fork.stop() if self._family is None else self._family.disown(fork))
            except EnclaveError as error:  # there is one that led here: that is the one to report
                logger.warning("ending fork %s failed: %s", fork.id, error)


def _name_of(checkpoint: Checkpoint | str | None) -> str | None:
    if checkpoint is None or isinstance(checkpoint, str):
        return checkpoint
    return checkpoint.id
