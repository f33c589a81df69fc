"""Forks, checkpoints and atomic cells of the embedded sandbox: what its owner does for them.

The station keeps, copies and replaces (`spawner.checkpoints`); here is what goes on from there, in
what order, and what is undone where one of it fails.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel

from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes import _process_request as requests
from ms_enclave.boxes.base import Sandbox
from ms_enclave.errors import ConfigError, ForkRefusedError, SandboxLostError
from ms_enclave.model import Checkpoint, FileChange, SandboxStatus
from ms_enclave.model.checkpoints import MOST_CHECKPOINTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from ms_enclave.boxes._process_tiers import Place, Tier
    from ms_enclave.boxes.kernels import Another, Kernel, Savepoint, Was
    from ms_enclave.channel.process import KernelProcess, KernelRequest
    from ms_enclave.model import ProcessSandboxConfig
    from ms_enclave.model.limits import ResolvedLimits
    from ms_enclave.spawner.client import StationClient, StationProcess

__all__ = ["Origin", "ProcessForks"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What a fork is made from: the sandbox, what its kernel was, the name of its checkpoint, and
    what its own is to be told. None where it has the files alone."""

    sandbox: ProcessForks
    checkpoint: str
    was: Was | None
    told: Mapping[str, Any]


@dataclass
class _Kept:
    """A checkpoint, and what goes on from there is to be told."""

    info: Checkpoint
    was: Was | None
    told: Mapping[str, Any]


@dataclass(frozen=True)
class _Savepoint:
    """How a sandbox was before a cell: see `kernels.Savepoint`."""

    kept: _Kept
    rolled: int
    drop: Callable[[str], Awaitable[None]]
    go_back: Callable[[_Kept, int], Awaitable[None]]

    async def keep(self) -> None:
        await self.drop(self.kept.info.id)

    async def undo(self) -> None:
        await self.go_back(self.kept, self.rolled)


class ProcessForks(Sandbox):
    """The part of `ProcessSandbox` that is about going on from what was kept."""

    _station: StationClient
    _limits: ResolvedLimits
    _tier: Tier
    _place: Place
    _origin: Origin | None = None
    """What this one is a fork of, while it starts."""
    _another: Another | None = None
    """What is to be its kernel, when it goes on."""
    _kept: dict[str, _Kept]
    """Its checkpoints, the oldest first."""
    _at: str | None = None
    """The one that it was at, or went on from, last."""
    _rolled = 0
    """How often it went back."""
    _began = 0
    """How often it began to."""

    @property
    @abstractmethod
    def _settings_of_process(self) -> ProcessSandboxConfig: ...

    @abstractmethod
    def _who(self, user: str | int | None) -> tuple[int, int]:
        """uid and gid inside."""

    @abstractmethod
    async def _give_network(self, box: str) -> None:
        """Give a box of its station its way out."""

    async def _fork(
        self, made: list[Sandbox], ids: Sequence[str], *, reseed: bool, at: str | None, drop: bool
    ) -> None:
        if at is not None:
            await self._fork_from(self._checkpoint_of(at), made, ids, reseed=reseed)
            return
        kernel = await self._find_kernels().to_fork()
        async with kernel._at_rest() as process:  # pyright: ignore[reportPrivateUsage]
            name = inputs.new_sandbox_id()
            was = kernel._be_seen()  # pyright: ignore[reportPrivateUsage]
            try:
                told = await self._ask_checkpoint(name, process, passing=True, drop=drop)
                origin = Origin(self, name, was, told)
                for own in ids:
                    await self._start_fork(self._make_fork(origin, own), made)
            finally:
                await self._drop_checkpoint(name)
        await self._all_go_on(made, reseed=reseed)

    async def _fork_from(
        self, kept: _Kept, made: list[Sandbox], ids: Sequence[str], *, reseed: bool
    ) -> None:
        was = kept.was if kept.info.memory else None
        origin = Origin(self, kept.info.id, was, kept.told)
        for own in ids:
            await self._start_fork(self._make_fork(origin, own), made)
        await self._all_go_on(made, reseed=reseed)

    async def _ask_checkpoint(
        self,
        name: str,
        process: KernelProcess | None,
        *,
        passing: bool = False,
        drop: bool = False,
    ) -> Mapping[str, Any]:
        """Have the station keep how it is. Raises ForkRefusedError."""
        fields: dict[str, Any] = {
            "box": self.id, "checkpoint": name, "passing": passing, "drop": drop,
        }  # fmt: skip
        if process is not None:
            fields["process"] = cast("StationProcess", process.process).number
        told = await self._station.ask("checkpoint", **fields)
        if "blockers" in told:
            raise ForkRefusedError(blockers=told["blockers"])
        if told.get("dropped"):
            logger.info("forks of %s are without: %s", self.id, "; ".join(told["dropped"]))
        return told

    async def _drop_checkpoint(self, name: str) -> None:
        if self._station.alive:
            with anyio.CancelScope(shield=True), suppress(SandboxLostError):
                await self._station.ask("drop", box=self.id, checkpoint=name)

    def _make_fork(self, origin: Origin, name: str) -> ProcessForks:
        fork = type(self)(self.config.model_copy(deep=True), name)
        fork._keeping = self._keeping
        fork._origin = origin
        return fork

    def _settle_beside(self, origin: Origin) -> StationClient:
        """The station of what it is a fork of, and all that does not depend on the box."""
        self._limits = self.config.resolve_limits()
        self._tier = origin.sandbox._tier
        station = origin.sandbox._station
        station.users += 1
        return station

    async def _begin_from(self, box: str, checkpoint: str, was: Was) -> Another:
        """A process in a box that goes on from where a kernel was."""
        from ms_enclave.boxes import _process_kernel as kernels

        async def start(request: KernelRequest) -> KernelProcess:
            station = self._station
            limits = request.limits or self._limits
            fields = requests.station_fields(limits, self._who(None), station.facts)
            return kernels.StationKernel(*await station.spawn_fork(box, checkpoint, fields))

        return await self._find_kernels().begin(was, start)

    @staticmethod
    async def _all_go_on(made: list[Sandbox], *, reseed: bool) -> None:
        for fork in made:
            await cast("ProcessForks", fork)._go_on(reseed=reseed)

    async def _go_on(self, *, reseed: bool) -> None:
        """Have the kernel, if there is to be one, go on from where that of the original was."""
        origin, self._origin = cast("Origin", self._origin), None
        another, self._another = self._another, None
        if another is None:
            return
        async with self._using():
            try:
                await another.go_on({**origin.told, "reseed": reseed})
                await self._find_kernels().put(another)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await another.end()
                raise

    def _checkpoint_of(self, name: str) -> _Kept:
        for kept in reversed(self._kept.values()):
            if name in (kept.info.id, kept.info.name):
                return kept
        raise ConfigError(f"Sandbox {self.id} has no checkpoint {name!r}")

    async def _checkpoint(self, name: str | None) -> Checkpoint:
        kernel = await self._find_kernels().at_most_one()
        if kernel is None:
            return await self._keep(name, None, None)
        async with kernel._at_rest() as process:  # pyright: ignore[reportPrivateUsage]
            return await self._keep(name, kernel, process)

    async def _keep(
        self, name: str | None, kernel: Kernel | None, process: KernelProcess | None
    ) -> Checkpoint:
        """Have one more in its tree."""
        kept = await self._take(name, kernel, process)
        self._kept[kept.info.id] = kept
        self._at = kept.info.id
        await self._make_room()
        return kept.info

    async def _take(
        self, name: str | None, kernel: Kernel | None, process: KernelProcess | None
    ) -> _Kept:
        """Keep how it is; whoever asks sees to that no cell is running."""
        own = inputs.new_sandbox_id()
        was = None if kernel is None else kernel._be_seen()  # pyright: ignore[reportPrivateUsage]
        try:
            told = await self._ask_checkpoint(own, process)
        except BaseException:
            await self._drop_checkpoint(own)
            raise
        info = Checkpoint(
            id=own, name=name, parent=self._at, memory=was is not None,
            created_at=datetime.now(timezone.utc),
        )  # fmt: skip
        return _Kept(info, was, told)

    async def _make_room(self) -> None:
        """Let go of the memory of the oldest beyond what is kept, and of the oldest altogether."""
        with_memory = [kept for kept in self._kept.values() if kept.info.memory]
        for kept in with_memory[: max(0, len(with_memory) - self.config.max_checkpoints)]:
            kept.info = kept.info.model_copy(update={"memory": False})
            await self._station.ask("thin", box=self.id, checkpoint=kept.info.id)
        for name in [*self._kept][:-MOST_CHECKPOINTS]:
            await self._forget(name)

    async def _forget(self, name: str) -> None:
        if self._kept.pop(name, None) is not None:
            await self._drop_checkpoint(name)

    async def _savepoint(self, kernel: Kernel) -> Savepoint:
        async with self._using(), self._turn:
            await self._require("checkpoint")
            await self._find_kernels().at_most_one()
            session = kernel._session  # pyright: ignore[reportPrivateUsage]
            process = None if session is None else session.process
            kept = await self._take(None, kernel, process)
            return _Savepoint(kept, self._rolled, self._drop_checkpoint, self._undo_to)

    async def _undo_to(self, kept: _Kept, rolled: int) -> None:
        """Be as before a cell, unless somebody has rolled the sandbox back meanwhile."""
        async with self._turn:
            if self._rolled == rolled and self._status is SandboxStatus.RUNNING:
                await self._become(kept)
        await self._drop_checkpoint(kept.info.id)

    def _list_checkpoints(self) -> list[Checkpoint]:
        return [kept.info for kept in self._kept.values()]

    async def _diff(self, a: str, b: str | None) -> list[FileChange]:
        before = self._checkpoint_of(a).info.id
        after = None if b is None else self._checkpoint_of(b).info.id
        blockers, rows = await self._station.compare(self.id, before, after)
        if blockers:
            text = f"The files cannot be compared: {'; '.join(blockers)}"
            raise ForkRefusedError(text, blockers=blockers)
        found = (dict(zip(("path", "change", "type"), row, strict=True)) for row in rows)
        changes = [FileChange.model_validate(fields) for fields in found]
        return sorted(changes, key=lambda change: change.path)

    async def _roll_back(self, name: str) -> None:
        await self._become(self._checkpoint_of(name))
        self._at = self._checkpoint_of(name).info.id

    async def _become(self, kept: _Kept) -> None:
        """Be as it was, in a box of its own that takes this one's place. Whole, or not at all."""
        self._began += 1
        new = f"{self.id}~{self._began}"
        station = self._station
        await station.open_box(
            new, requests.DEFAULT_USER, requests.box_limits(self._limits), lambda _text: None,
            checkpoint=kept.info.id,
        )  # fmt: skip
        another: Another | None = None
        facts: Mapping[str, Any] = {}
        try:
            if self._place.network:
                await self._give_network(new)
            if kept.info.memory and kept.was is not None:
                another = await self._begin_from(new, kept.info.id, kept.was)
                await another.go_on({**kept.told, "reseed": False})
            await anyio.lowlevel.checkpoint()  # from the next step on nobody can break it off
            with anyio.CancelScope(shield=True):
                facts = await station.ask("replace", box=self.id, by=new)
        except BaseException:
            with anyio.CancelScope(shield=True):
                if another is not None:
                    await another.end()
                await station.close_box(new)
            raise
        with anyio.CancelScope(shield=True):
            self._rolled += 1
            self._place = self._tier.place(self._settings_of_process, facts)
            await self._find_kernels().put(another)
            await self._guests.renew()
            await station.close_box(new)  # what it was until now
