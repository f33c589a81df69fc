"""The embedded sandbox: Linux namespaces by direct system calls, and nothing to install.

This module only makes and destroys a box and starts processes in it. The walls are built by the
station (`ms_enclave.spawner`), what the box shows of the host is decided by `_process_plan`, and
what a machine lacks is explained by `_process_probe`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, cast

import anyio
import anyio.to_thread

from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes import _process_request as requests
from ms_enclave.boxes._life import CLOSE_BOUND
from ms_enclave.boxes._process_forks import Origin, ProcessForks
from ms_enclave.boxes._process_fresh import MOST_STDIN, Fresh
from ms_enclave.boxes._process_network import refuse_without_helper
from ms_enclave.boxes._process_plan import RuntimePlan, closed_part, plan_runtime
from ms_enclave.boxes._process_tiers import Landlock, Namespaces, Place, Tier
from ms_enclave.boxes._process_watch import follow
from ms_enclave.boxes.base import PROCESS_WIDE, WHOLE, Keeping, Sandbox
from ms_enclave.boxes.factory import register_sandbox
from ms_enclave.errors import (
    CapabilityError,
    ConfigError,
    IsolationUnavailableError,
    SandboxStartError,
    SandboxStateError,
)
from ms_enclave.loop import remove_closer
from ms_enclave.model import (
    CommandResult,
    IsolationReport,
    ProcessSandboxConfig,
    SandboxConfig,
    SandboxStatus,
)
from ms_enclave.spawner import register, stations

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from contextlib import AsyncExitStack

    from ms_enclave.boxes._execution import Job
    from ms_enclave.boxes._gvisor import Gvisor
    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.process import KernelProcess, KernelRequest, Process, SpawnRequest
    from ms_enclave.model import SnapshotInfo
    from ms_enclave.model.diagnosis import Diagnosis, FoundSandbox, Problem
    from ms_enclave.model.limits import ResolvedLimits
    from ms_enclave.spawner.client import StationClient, StationProcess

__all__ = ["ProcessSandbox"]

_REFUSED_SECONDS = 60.0
_NAMESPACES = "use isolation='namespace'"
_FORKS = "forks take ptrace, and Linux 6.15 or newer for their files"
_OF_NAMESPACES = {
    "fork": _FORKS,
    "checkpoint": _FORKS,
    "snapshot": "snapshots take Linux 6.15 or newer",
}
"""What a sandbox of the tier that can most takes for it."""
_MOST_FRESH = 32
_fresh: dict[tuple[str, type[Sandbox]], dict[str, Fresh]] = {}
"""By owner and class, and then by config."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Left:
    """A box that a last owner left: who has it, what the station knows of it, and the note."""

    station: StationClient
    facts: dict[str, Any]
    note: dict[str, Any]


@register_sandbox("process")
class ProcessSandbox(ProcessForks):
    """A sandbox of tier `namespace`, on any Linux from 5.12 on; see `docs/process.md`.

    Raises at its start IsolationUnavailableError where the machine does not allow the walls, with
    what to do about it; nothing ever runs with fewer of them than its attestation says.
    """

    sandbox_type = "process"
    config_class: ClassVar[type[SandboxConfig]] = ProcessSandboxConfig
    guest_is_the_box = False
    offers = WHOLE | {"fork", "checkpoint", "snapshot"}

    _refused: ClassVar[dict[str, float]] = {}
    """Until when (monotonic) an owner to whom namespaces were refused is not to try again."""

    _station: StationClient
    _plan: RuntimePlan
    _limits: ResolvedLimits
    _tier: Tier
    _place: Place
    _gvisor: Gvisor | None = None
    """What there is instead of a station in tier `gvisor`."""
    _left: _Left | None = None
    """What a last owner left, in a handle that takes it over."""
    _is_left = False
    """Whether the box is to be there when everything else of this handle is gone."""

    @property
    def _settings_of_process(self) -> ProcessSandboxConfig:
        return cast("ProcessSandboxConfig", self.config)

    @classmethod
    async def _run_fresh(
        cls,
        owner: str,
        config: SandboxConfig | Mapping[str, Any] | None,
        code: str,
        *,
        stdin: bytes | str | None,
        timeout: float | None,
    ) -> CommandResult | None:
        """Run Python source in a fresh sandbox without a handle. See `Sandbox._run_fresh`."""
        source, seconds = inputs.validate_code(code), inputs.validate_timeout(timeout)
        given = inputs.normalise_stdin(stdin)
        if given is not None and (not isinstance(given, bytes) or len(given) > MOST_STDIN):
            return None
        runs = await cls._runs(owner, config)
        return None if runs is None else await runs.run(source, stdin=given, timeout=seconds)

    @classmethod
    async def _runs(
        cls, owner: str, config: SandboxConfig | Mapping[str, Any] | None
    ) -> Fresh | None:
        """What runs of an owner's config have in common, worked out at the first of them."""
        own = cast("ProcessSandboxConfig", inputs.coerce_config(cls.config_class, config))
        known = _fresh.setdefault((owner, cls), {})
        key = "" if config is None else own.model_dump_json()
        found = known.get(key)
        if found is not None and found.station.alive:
            return found
        plain = own.isolation in (None, "namespace") and own.on_owner_death == "kill"
        if own.require or own.network_enabled or own.snapshot or not plain:
            return None  # what a sandbox has to show, or gets when it opens
        sandbox = cls(own.model_copy(deep=True))
        sandbox._owner = owner
        station = await sandbox._settle()
        if own.preload:
            await _prepare(station, list(own.preload))
        while len(known) >= _MOST_FRESH:
            known.pop(next(iter(known)))
        made = Fresh(
            sandbox._settings_of_process, station,
            requests.environment(sandbox._plan, own.working_dir), requests.DEFAULT_USER,
        )  # fmt: skip
        known[key] = made
        return made

    async def _settle(self) -> StationClient:
        """Find the station that its config needs, and all that does not depend on the box."""
        config = self._settings_of_process
        _refuse_what_is_not_here(config)
        if config.on_owner_death == "keep" and self._keeping is None:
            raise CapabilityError("keep", remedy="make it by a manager with a `state_dir`")
        self._limits = config.resolve_limits()
        self._plan = await anyio.to_thread.run_sync(plan_runtime, config)
        return await self._find_station(config.isolation or "namespace")

    async def _open(self, stack: AsyncExitStack) -> None:
        config = self._settings_of_process
        self._kept = {}
        if self._left is not None:
            self._limits = config.resolve_limits()
            self._attach(self._left, stack)
            return
        if config.isolation == "gvisor":
            await self._open_gvisor(config, stack)
            return
        origin = self._origin
        station = await self._settle() if origin is None else self._settle_beside(origin)
        keep = self._owner != PROCESS_WIDE
        stack.push_async_callback(stations.release, self._owner, station, keep=keep)
        self._station = station
        if origin is None and station.facts["root_mode"]:
            _refuse_a_closed_python(self._plan)
        async with self._beginning(origin) as checkpoint:
            box = await station.open_box(
                self.id, requests.DEFAULT_USER, requests.box_limits(self._limits), self._lost,
                checkpoint=checkpoint,
            )  # fmt: skip
            stack.push_async_callback(self._close_box)
        stack.callback(self._show(box["init"], station.launcher))
        self._place = self._tier.place(config, box)
        stack.callback(setattr, self, "config", config)
        self.config = config.model_copy(update={"working_dir": self._place.work})
        if self._place.network:
            await _attach_network(station, self.id)
        if config.preload:
            await _prepare(station, list(config.preload))
        await self._settle_in(origin)
        _require_guards(self._describe(), config.require or ())
        if self._keeping is not None:  # from here on it is whole, and may outlive us
            await station.keep_box(
                self.id, self._note(config), ttl=config.ttl, most=self._keeping.seconds,
                idle=config.idle_timeout,
            )  # fmt: skip

    @asynccontextmanager
    async def _beginning(self, origin: Origin | None) -> AsyncGenerator[str | None, None]:
        """What the station has that its files begin with, in the block."""
        name = self.config.snapshot
        if origin is not None or name is None:
            yield None if origin is None else origin.checkpoint
            return
        if not isinstance(self._tier, Namespaces):  # with isolation="best"
            raise CapabilityError("snapshot", remedy=_NAMESPACES)
        from ms_enclave.boxes import _process_snapshots as snapshots  # few want one

        store = await self._find_snapshots()
        work = self._settings_of_process.working_dir
        async with snapshots.loaded(self._station, name, store, work) as checkpoint:
            yield checkpoint

    async def _settle_in(self, origin: Origin | None) -> None:
        """Have an environment, and a kernel if it begins as somebody's fork."""
        if origin is None:
            self._environment = {
                **self._environment, **self._plan.env, "HOME": self._place.work,
                **dict(self._place.env),
            }  # fmt: skip
            self._shell = self._plan.shell
            return
        self._environment = dict(origin.sandbox._environment)
        self._shell = origin.sandbox._shell
        if origin.was is not None:
            self._another = await self._begin_from(self.id, origin.checkpoint, origin.was)
            self._own(self._another.end)  # until it is the kernel, nobody else does

    async def _open_gvisor(self, config: ProcessSandboxConfig, stack: AsyncExitStack) -> None:
        """Be one of tier `gvisor`, which has neither a station nor anything of one."""
        from ms_enclave.boxes import _gvisor, _gvisor_plan  # few want them

        _refuse_what_is_not_here(config)
        self._tier = _gvisor_plan.GvisorTier(*await anyio.to_thread.run_sync(_gvisor.find_runsc))
        self._limits = config.resolve_limits()
        self._plan = await anyio.to_thread.run_sync(plan_runtime, config)
        _refuse_a_closed_python(self._plan)
        self._place = self._tier.place(config, {})
        made = self._gvisor = _gvisor.Gvisor(self._station_plan(), self._lost)
        stack.push_async_callback(made.close)
        await made.start()
        stack.callback(self._show(_gvisor.INIT, made.launcher))
        self._environment = {
            **self._environment, **self._plan.env, "HOME": config.working_dir
        }  # fmt: skip
        self._shell = self._plan.shell
        await self._get_guest()
        self._capabilities = _gvisor_plan.GvisorTier.everything
        self._isolation = self._tier.report({"controllers": made.controllers}, self._place)
        _require_guards(self._isolation, config.require or ())

    async def _find_station(self, isolation: str) -> StationClient:
        """A station of the tier that is wanted; with "best", of the best that can be had here."""
        if isolation == "landlock":
            try:
                return await self._acquire(Landlock())
            except IsolationUnavailableError as error:
                raise await _explained_landlock(error) from None
        if isolation == "best" and time.monotonic() < self._refused.get(self._owner, 0.0):
            return await self._acquire(Landlock())
        try:
            return await self._acquire(Namespaces())
        except IsolationUnavailableError as error:
            if isolation != "best":
                raise await _explained(error) from None
            refusal = error
            self._refused[self._owner] = time.monotonic() + _REFUSED_SECONDS
        try:
            return await self._acquire(Landlock())
        except IsolationUnavailableError as error:
            raise await _explained(refusal) from error

    async def _acquire(self, tier: Tier) -> StationClient:
        self._tier = tier
        plan = await anyio.to_thread.run_sync(self._station_plan)
        if self._keeping is not None:
            plan["keep"] = self._keeping.folder
        return await stations.acquire(self._owner, requests.plan_key(plan), plan)

    def _show(self, init: int, launched: tuple[int, int]) -> Callable[[], None]:
        """Let others see that it is there, until what is returned is called."""
        launcher, began = launched
        return register.add(
            {
                "type": self.sandbox_type,
                "id": self.id,
                "created": self.created_at.isoformat(timespec="seconds"),
                "manager": "" if self._owner == PROCESS_WIDE else self._owner,
                "kept": self._keeping is not None,
                "launcher": launcher,
                "began": began,
                "init": init,
            }
        )

    def _note(self, config: ProcessSandboxConfig) -> str:
        """What the next owner has to know of it."""
        return json.dumps(
            {
                "id": self.id,
                "tier": self._tier.name,
                "config": config.model_dump(mode="json"),
                "created_at": self.created_at.isoformat(),
                "environment": dict(self._environment),
                "shell": self._shell,
            }
        )

    def _attach(self, left: _Left, stack: AsyncExitStack) -> None:
        """Take over a box that is there."""
        station = self._station = left.station
        station.users += 1
        stack.push_async_callback(stations.release, self._owner, station, keep=True)
        station.adopt_box(self.id, self._lost)
        stack.push_async_callback(self._close_box)
        stack.callback(self._show(left.facts["init"], station.launcher))
        config = self._settings_of_process
        self._tier = Landlock() if left.note["tier"] == Landlock.name else Namespaces()
        self._place = self._tier.place(config, left.facts)
        stack.callback(setattr, self, "config", config)
        self.config = config.model_copy(update={"working_dir": self._place.work})
        self._environment = left.note["environment"]
        self._shell = left.note["shell"]
        self._describe()

    def _describe(self) -> IsolationReport:
        """Say what it can do and what holds it."""
        facts, place = self._station.facts, self._place
        able = requests.capabilities(facts, place.layered, network=place.network)
        self._capabilities = able | self._tier.able
        self._isolation = self._tier.report(facts, place)
        return self._isolation

    async def _leave(self) -> bool:
        if self._keeping is None or self._status is not SandboxStatus.RUNNING:
            return False
        self._is_left = True
        self._lost("The sandbox was left to the next owner")
        remove_closer(self)
        await self._undo()
        return True

    async def _close_box(self) -> None:
        if not self._is_left:
            await self._station.close_box(self.id)

    async def _set_frozen(self, frozen: bool) -> None:
        try:
            await self._station.freeze_box(self.id, frozen)
        except TimeoutError:
            raise SandboxStateError(f"Something in sandbox {self.id} did not stand still") from None

    async def _renewed(self, seconds: float) -> None:
        if self._keeping is not None:
            await self._station.ask("renew", box=self.id, ttl=seconds)

    @classmethod
    async def adopt(cls, owner: str, keeping: Keeping) -> list[tuple[Sandbox, float | None]]:
        """Handles of the sandboxes that a last owner left in a folder."""
        found: list[tuple[Sandbox, float | None]] = []
        taken, complaints = await stations.adopt_all(owner, keeping.folder)
        for text in complaints:
            logger.warning("of what the last owner left: %s", text)
        for station in taken:
            for name, (facts, text) in (await station.recall_boxes()).items():
                note = json.loads(text)
                sandbox = cls(note["config"], name)
                sandbox.created_at = datetime.fromisoformat(note["created_at"])
                sandbox._owner, sandbox._keeping = owner, keeping
                sandbox._left = _Left(station, facts, note)
                found.append((sandbox, facts["left"]))
        return found

    @classmethod
    async def leave_owner(cls, owner: str) -> None:
        """Let the owner's stations that are to outlive it wait for the next one."""
        await stations.leave_all_of(owner)

    def _station_plan(self) -> dict[str, Any]:
        """What its station is built from. Tests take walls away here, to see attacks succeed;
        no config field, environment variable or route reaches it."""
        return self._tier.station_plan(self._plan, self._settings_of_process)

    async def _see_through(self, request: SpawnRequest, job: Job) -> CommandResult:
        if job.on_output is None and job.stdin is None and self._gvisor is None:
            return await follow(lambda: self._spawn_by_station(request), job)
        return await super()._see_through(request, job)

    async def _spawn(self, request: SpawnRequest) -> Process:
        if self._gvisor is None:
            return await self._spawn_by_station(request)
        self._who(request.user)
        limits = requests.program_limits(request.limits or self._limits)
        request = requests.seeded(request, self.config.seed)
        guest = await self._get_guest()
        return await guest.spawn(replace(request, user=None, limits=limits))

    async def _spawn_by_station(self, request: SpawnRequest) -> StationProcess:
        config = self._settings_of_process
        limits = request.limits or self._limits
        request = replace(request, cwd=self._place.real(request.cwd))
        fields = requests.station_fields(limits, self._who(request.user), self._station.facts)
        if request.argv is not None:
            document = requests.command_document(request)
            terminal = None
            if request.pty is not None:
                who = self._who(request.user)
                terminal = await self._station.open_terminal(self.id, who, request.pty)
            return await self._station.spawn(
                self.id, "exec", document, fields, stdin=request.stdin, terminal=terminal,
                behind=request.pty_behind,
            )  # fmt: skip
        document = requests.code_document(request, list(config.preload or ()), config.seed)
        fields["preload"] = document["preload"]
        return await self._station.spawn(self.id, "python", document, fields, stdin=request.stdin)

    def _guest_user(self, user: str | int | None) -> int | None:
        number = self._who(user)[0]
        return None if number == self._who(None)[0] else number

    def _who(self, user: str | int | None) -> tuple[int, int]:
        facts = {} if self._gvisor is not None else self._station.facts
        return self._tier.user(user, facts, self._place)

    def _is_the_box(self, user: str | int | None) -> bool:
        return self._gvisor is not None and user is None

    async def _connect_guest(self, user: str | int | None) -> GuestConnection:
        if self._gvisor is not None:
            return await self._gvisor.connect(self.config.working_dir)
        # A plain run needs no file server.
        from ms_enclave.channel.guest import GuestConnection
        from ms_enclave.channel.guest_socket import GuestSocket

        station = self._station
        document = {
            "op": "guest", "cwd": self._place.work, "env": dict(self._environment),
            "moved": self._place.moved,
        }  # fmt: skip
        fields = requests.station_fields(self._limits, self._who(user), station.facts)
        process, channel = await station.spawn_guest(self.id, document, fields)
        await process.abandon()  # its end is heard on the channel; its streams lead nowhere
        connection = GuestConnection(
            GuestSocket(channel),
            working_dir=self.config.working_dir,
            wake=lambda: station.ask("signal", process=process.number, signal=signal.SIGCONT),
        )
        try:
            await connection.connect()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await connection.aclose()
            raise
        return connection

    async def _require(self, capability: str) -> None:
        # Who wants a network asks for one in the config; all else is a matter of the tier, and of
        # the groups.
        if capability == "pause" and "pause" not in self._capabilities and self._gvisor is None:
            remedy = "give this user control groups of version 2, see `ms-enclave doctor`"
            raise CapabilityError(capability, remedy=remedy)
        if capability in self.offers - {"network"} - self._capabilities:
            remedy = _NAMESPACES
            if isinstance(self._tier, Namespaces):
                remedy = _OF_NAMESPACES.get(capability, remedy)
            raise CapabilityError(capability, remedy=remedy)
        await super()._require(capability)

    async def _start_kernel(self, request: KernelRequest) -> KernelProcess:
        from ms_enclave.boxes import _process_kernel as kernels  # a plain run needs none

        if self._gvisor is not None:
            limits = requests.program_limits(request.limits or self._limits)
            return await super()._start_kernel(replace(request, limits=limits))
        station, config = self._station, self._settings_of_process
        named = [*dict.fromkeys((*(config.preload or ()), *request.preload))]
        modules = await kernels.prepare(station, named, request.ipython, _prepare)
        request = replace(request, cwd=self._place.real(request.cwd))
        fields = requests.station_fields(
            request.limits or self._limits, self._who(None), station.facts
        )
        fields["preload"] = modules
        document = requests.kernel_document(request, named)
        return kernels.StationKernel(*await station.spawn_kernel(self.id, document, fields))

    async def _snapshot(self, name: str) -> SnapshotInfo:
        from ms_enclave.boxes import _process_snapshots as snapshots

        store = await self._find_snapshots()
        async with self._turn, self._lock:
            self._require_running()
            layer = await self._copy_standing_still()
        try:
            return await anyio.to_thread.run_sync(
                snapshots.store, self._station, layer, name, store
            )
        finally:
            for descriptor in layer:
                os.close(descriptor)

    async def _copy_standing_still(self) -> tuple[int, int]:
        """Its files, copied while nothing in it runs, where that can be had."""
        from ms_enclave.boxes import _process_snapshots as snapshots

        runs = "pause" in self._capabilities and not self._paused
        try:
            if runs:
                await self._set_frozen(True)
            return await snapshots.copy_files(self._station, self.id)
        finally:
            if runs:
                with anyio.move_on_after(CLOSE_BOUND, shield=True):
                    await self._thaw_to_end()

    async def _give_network(self, box: str) -> None:
        await _attach_network(self._station, box)

    async def _look(self) -> None:
        if self._gvisor is None:
            await self._station.ask("look", box=self.id)

    @classmethod
    async def release_owner(cls, owner: str) -> None:
        """End the owner's stations."""
        cls._refused.pop(owner, None)
        for place in [place for place in _fresh if place[0] == owner]:
            del _fresh[place]
        await stations.end_all_of(owner)

    @classmethod
    async def find_all(cls) -> list[FoundSandbox]:
        """Those of living processes, and what dead ones have left: for the caller's own user; for
        root, of everybody."""
        if sys.platform != "linux":
            return []
        from ms_enclave.boxes import _process_found as places

        return await anyio.to_thread.run_sync(places.find, cls.sandbox_type)

    @classmethod
    async def remove_found(cls, found: Sequence[FoundSandbox]) -> None:
        """Remove them; what another owner has taken over meanwhile is left alone."""
        from ms_enclave.boxes._process_removed import remove

        await remove(found)

    @classmethod
    async def diagnose(cls) -> Diagnosis:
        """Whether it works here, by making one, with the exact remedy for whatever it lacks."""
        from ms_enclave.boxes._diagnose import diagnose_by_starting

        found = await diagnose_by_starting(cls, await _problems())
        other = await diagnose_by_starting(cls, config={"isolation": "landlock"})
        if other.works:
            return found.model_copy(update={"by_name": {"landlock": other.guards}})
        if found.works:
            return found
        also = [problem.model_copy(update={"blocks": False}) for problem in other.problems]
        return found.model_copy(update={"problems": [*found.problems, *also]})


def _refuse_what_is_not_here(config: ProcessSandboxConfig) -> None:
    """What cannot be had is refused before anything is made.

    Raises:
        IsolationUnavailableError: not Linux.
        CapabilityError: a network, and the machine has nothing to make one with; a snapshot, in a
            tier that has none.
    """
    if sys.platform != "linux":
        from ms_enclave.boxes._process_probe import USE_LINUX

        raise IsolationUnavailableError(
            f"The process sandbox needs Linux; this is {platform.system() or sys.platform}",
            missing=["linux"],
            remedy=USE_LINUX,
        )
    if config.network_enabled:
        refuse_without_helper()
    if config.snapshot is not None and config.isolation in ("landlock", "gvisor"):
        raise CapabilityError("snapshot", remedy=_NAMESPACES)


def _refuse_a_closed_python(plan: RuntimePlan) -> None:
    """Raise ConfigError for one that only its owner may run: a sandbox's user is another."""
    closed = closed_part(plan)
    if closed is not None:
        raise ConfigError(
            f"A sandbox's own user may not use {closed}, which its Python is in or needs",
            remedy=f"chmod -R go+rX {closed}",
        )


async def _attach_network(station: StationClient, name: str) -> None:
    """Give a sandbox its way out. Raises CapabilityError where the machine's helpers cannot."""
    try:
        await station.ask("network", box=name)
    except SandboxStartError as error:
        raise CapabilityError(
            "network",
            message=f"The sandbox can have no network here: {error.message}",
            remedy="see that pasta works by itself (pasta --config-net), or install slirp4netns",
        ) from error


async def _prepare(station: StationClient, modules: list[str]) -> None:
    """Have modules imported ahead of need.

    Raises:
        ConfigError: one of them cannot be imported, or not in a process that is to be copied.
    """
    try:
        await station.ask("prepare", preload=modules)
    except SandboxStartError as error:
        raise ConfigError(f"These modules cannot be preloaded: {error.message}") from error


def _require_guards(report: IsolationReport, wanted: object) -> None:
    missing = [name for name in cast("list[str]", wanted) if report.guards.get(name) != "on"]
    if missing:
        raise IsolationUnavailableError(
            f"Required guards are not active here: {', '.join(missing)}",
            missing=missing,
            remedy="run `ms-enclave doctor` for what would give them",
        )


async def _problems() -> list[Problem]:
    from ms_enclave.boxes._process_probe import host_facts, problems

    facts = await anyio.to_thread.run_sync(host_facts)
    return problems(facts)


async def _explained(error: IsolationUnavailableError) -> IsolationUnavailableError:
    """The same refusal with the remedy that fits this machine, as far as one is known."""
    from ms_enclave.boxes._process_probe import host_facts, problems
    from ms_enclave.spawner.landlock import OLDEST

    facts = await anyio.to_thread.run_sync(host_facts)
    blocking = [problem for problem in problems(facts) if problem.blocks]
    if not blocking:
        return error
    text = f"{blocking[0].what} ({error})"
    if facts.landlock_abi >= OLDEST:
        text += "; isolation='landlock' can do without, with weaker walls"
    return IsolationUnavailableError(
        text, missing=error.missing, remedy="; ".join(problem.remedy for problem in blocking)
    )


async def _explained_landlock(error: IsolationUnavailableError) -> IsolationUnavailableError:
    """The same for the tier `landlock`."""
    from ms_enclave.boxes._landlock_probe import landlock_problem
    from ms_enclave.boxes._process_probe import host_facts

    facts = await anyio.to_thread.run_sync(host_facts)
    problem = landlock_problem(facts, error.missing[0] if error.missing else "")
    if problem is None:
        return error
    return IsolationUnavailableError(
        f"{problem.what} ({error})", missing=error.missing, remedy=problem.remedy
    )
