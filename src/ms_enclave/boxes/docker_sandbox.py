"""Containers of a Docker engine: an image as it is, and the guest as its first process.

This module only makes and destroys a container and reaches the guest in it. What it is made from
is decided by `_docker_plan`, and `_docker_engine` is all that talks to the engine.
"""

from __future__ import annotations

import logging
import math
import secrets
import weakref
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import anyio
import anyio.to_thread

from ms_enclave.boxes import _docker_images as images
from ms_enclave.boxes import _docker_kept as kept
from ms_enclave.boxes import _docker_owner as owners
from ms_enclave.boxes import _docker_plan as plans
from ms_enclave.boxes import _docker_python as carried
from ms_enclave.boxes._diagnose import diagnose_by_starting
from ms_enclave.boxes.base import WHOLE, Sandbox
from ms_enclave.boxes.factory import register_sandbox
from ms_enclave.channel import guest_loader as loader
from ms_enclave.errors import (
    CapabilityError,
    EnclaveError,
    EngineUnavailableError,
    IsolationUnavailableError,
    SandboxLostError,
    SandboxStartError,
)
from ms_enclave.loop import remove_closer
from ms_enclave.model import DockerSandboxConfig, SandboxConfig, SandboxStatus
from ms_enclave.model.results import IsolationReport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AsyncExitStack
    from types import ModuleType

    from ms_enclave.boxes._docker_direct import Held
    from ms_enclave.boxes._docker_engine import Attached, Engine
    from ms_enclave.boxes._docker_kept import Note
    from ms_enclave.boxes.base import Keeping
    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.process import KernelProcess, KernelRequest, Process, SpawnRequest
    from ms_enclave.model.diagnosis import Diagnosis, FoundSandbox
    from ms_enclave.model.limits import ResolvedLimits

__all__ = ["DockerSandbox", "load_engine"]

logger = logging.getLogger(__name__)

_PYTHONS = ("python3", "python", carried.PYTHON, carried.PYTHON)
"""What may serve, in the order of trying: the image's own, and one that is brought along. Twice,
since somebody may have removed what was there a moment ago."""
_working: dict[tuple[object, ...], str] = {}
"""By image and who runs in it, which of them did."""
_STRICT_USERS = range(20_000, 60_000)
_REASON_BOUND = 0.5
"""Seconds that an engine has to say why a container has ended."""

_FOUND_BOUND = 20.0
"""Seconds that a container has to answer which its last owner has left."""

_TOLD = ("python", "privileged")
"""What the metadata say of a container for as long as it lives."""

_END_BOUND = 1.0
"""Seconds that a container has to end whose first process was killed."""

_taken_users: set[int] = set()
"""Numbers that strict sandboxes of this process have: what is counted by user is each one's own."""
_free_folders: dict[tuple[str, str], bool] = {}
"""By image and working folder: whether the image has nothing there."""


@register_sandbox("docker")
class DockerSandbox(Sandbox):
    """A container of the engine that the environment names; see `docs/docker.md`.

    Raises at its start EngineUnavailableError where no engine answers, ConfigError for what the
    engine cannot make of the config, and SandboxStartError for what it could not do; all keep the
    engine's words.
    """

    sandbox_type = "docker"
    config_class: ClassVar[type[SandboxConfig]] = DockerSandboxConfig
    offers = WHOLE

    _is_swept: ClassVar[bool] = False
    _engine: Engine | None = None
    _container: Any = None
    _attached: Attached | None = None
    _limits: ResolvedLimits
    _process: Held | None = None
    """The container's first process, where the channel to it does not pass the engine."""
    _secret = b""
    """What its guest shows to whoever goes past the engine."""
    _python: str
    _user = "0"
    """Who its guest is: a number or a name."""
    _is_whole = False
    _left: Note | None = None
    """What the last owner says of a container that is there already."""
    _is_left = False

    @property
    def _settings_of_docker(self) -> DockerSandboxConfig:
        return cast("DockerSandboxConfig", self.config)

    @property
    def client(self) -> Any:
        """The engine's client, while the sandbox runs."""
        return None if self._engine is None else self._engine.docker

    @property
    def container(self) -> Any:
        """The engine's container, while the sandbox runs."""
        return self._container

    @cached_property
    def _connections(self) -> weakref.WeakSet[GuestConnection]:
        """What its guests are talked to over."""
        return weakref.WeakSet()

    # --- its life ---

    async def _open(self, stack: AsyncExitStack) -> None:
        engines = await anyio.to_thread.run_sync(load_engine)
        config = self._settings_of_docker
        self._limits = plans.limits_of(config)
        engine = self._engine = await engines.acquire()
        stack.push_async_callback(self._release)
        if self._left is not None:
            try:
                await self._take_over(engine, self._left, stack)
            except EngineUnavailableError:
                self._is_left = True  # it is there, as far as anybody knows: for the next owner
                raise
            return
        self._require_keeping(engine)
        await self._sweep(engine)
        image = await self._find_image(engine, config)
        plan = await self._make_container(engine, config, image, stack)
        self._capabilities = self.offers - (set() if config.network_enabled else {"network"})
        guest = await self._get_guest()
        runtime = await engine.runtime(self._container)
        self._isolation = plans.isolation_report(plan, runtime, "")
        if not plan.bounded_folder:
            await guest.mkdir(config.working_dir)
        self._environment = {**self._environment, **await _environment_of(guest)}
        _require_guards(self._isolation.guards, config.require)
        if config.privileged:
            self.metadata["privileged"] = True
        command = plans.main_command(config, images.config_of(image).get("Entrypoint") or [])
        if command is not None:
            await self._run_in_background(command)
        if self._keeping is not None:  # from here on it is whole, and may outlive us
            await self._keep(config.ttl or self._keeping.seconds)
        self._is_whole = True

    # --- outliving its manager ---

    def _require_keeping(self, engine: Engine) -> None:
        if self.config.on_owner_death != "keep":
            return
        if self._keeping is None:
            raise CapabilityError("keep", remedy="make it by a manager with a `state_dir`")
        if not engine.is_here:
            raise CapabilityError("keep", remedy="use an engine on this machine, by its socket")

    async def _keep(self, seconds: float | None) -> None:
        """Have it wait for the next owner, and let that one find it.

        Args:
            seconds: how long it may live from now on; None: for ever.
        """
        if self._process is None:
            raise CapabilityError(
                "keep",
                message="A container can only be kept where its guest is talked to directly",
                remedy="run this as root, or as the user that the container runs as",
            )
        await (await self._get_guest()).keep(seconds, self.config.idle_timeout)
        boot, now = await anyio.to_thread.run_sync(kept.now)
        note = kept.Note(
            id=self.id,
            container=self._container.id,
            config=self._settings_of_docker.model_dump(mode="json"),
            created_at=self.created_at.isoformat(),
            boot=boot,
            until=None if seconds is None else now + seconds,
            environment=dict(self._environment),
            user=self._user,
            python=self._python,
            isolation=cast("IsolationReport", self._isolation).model_dump(mode="json"),
            metadata={name: self.metadata[name] for name in _TOLD if name in self.metadata},
        )
        await anyio.to_thread.run_sync(kept.write, cast("Keeping", self._keeping).folder, note)

    async def _take_over(self, engine: Engine, note: Note, stack: AsyncExitStack) -> None:
        """Reach a container that the last owner has left."""
        container = self._container = engine.container(note.container)
        stack.push_async_callback(self._end_container, engine)
        self._python, self._user = note.python, note.user
        if note.user.isdigit() and int(note.user) in _STRICT_USERS:
            _taken_users.add(int(note.user))
            stack.callback(_taken_users.discard, int(note.user))
        if not await engine.runs(container):
            raise SandboxLostError(f"Its container {note.container[:12]} has ended")
        await engine.set_paused(container, False)  # nobody is left who would know of it
        attached = self._attached = await engine.attach(container)
        stack.push_async_callback(attached.aclose)
        self._secret = _load_guests().find(attached)
        engine.watch.follow(container.id, self._hear)
        self._capabilities = self.offers - (
            set() if self._settings_of_docker.network_enabled else {"network"}
        )
        self._environment = note.environment
        self._isolation = IsolationReport.model_validate(note.isolation)
        self.metadata.update(note.metadata)
        with anyio.move_on_after(_FOUND_BOUND):
            await self._get_guest()
        if self._process is None:
            raise SandboxLostError(f"Its container {note.container[:12]} does not answer")
        await self._keep(await anyio.to_thread.run_sync(kept.left, note))
        self._is_whole = True

    async def _leave(self) -> bool:
        if self._keeping is None or self._status is not SandboxStatus.RUNNING:
            return False
        self._is_left = True
        self._lost("The sandbox was left to the next owner")
        remove_closer(self)
        await self._undo()
        return True

    async def _set_frozen(self, frozen: bool) -> None:
        engine, container = self._engine, self._container
        if engine is None or container is None:
            raise SandboxLostError(f"Sandbox {self.id} has no container any more")
        await engine.set_paused(container, frozen)

    async def _renewed(self, seconds: float) -> None:
        if self._keeping is not None:
            await self._keep(seconds)

    @classmethod
    async def adopt(cls, owner: str, keeping: Keeping) -> list[tuple[Sandbox, float | None]]:
        """Handles of the containers that a last owner left in a folder."""
        notes, complaints = await anyio.to_thread.run_sync(kept.read_all, keeping.folder)
        for text in complaints:
            logger.warning("of what the last owner left: %s", text)
        found: list[tuple[Sandbox, float | None]] = []
        for note in notes:
            sandbox = cls(note.config, note.id)
            sandbox.created_at = datetime.fromisoformat(note.created_at)
            sandbox._owner, sandbox._keeping, sandbox._left = owner, keeping, note
            found.append((sandbox, await anyio.to_thread.run_sync(kept.left, note)))
        return found

    # --- others' ---

    @classmethod
    async def diagnose(cls) -> Diagnosis:
        """Whether it works here, by making one; nothing is fetched for that."""
        return await diagnose_by_starting(cls, config={"pull": "never"})

    @classmethod
    async def find_all(cls) -> list[FoundSandbox]:
        """The containers of ours that the engine has. Raises EngineUnavailableError."""
        engines = await anyio.to_thread.run_sync(load_engine)
        async with engines.engine() as engine:
            return await _load_found().find(cls.sandbox_type, engine)

    @classmethod
    async def remove_found(cls, found: Sequence[FoundSandbox]) -> None:
        """Remove containers, running ones too. Raises EngineUnavailableError."""
        await anyio.to_thread.run_sync(load_engine)
        await _load_found().remove(found)

    @classmethod
    async def clear_cache(cls, *, dry_run: bool = False) -> list[str]:
        """Remove the volumes with a Python for images without, as far as no container has them.
        Raises EngineUnavailableError."""
        engines = await anyio.to_thread.run_sync(load_engine)
        async with engines.engine() as engine:
            return await _load_found().clear(engine, dry_run=dry_run)

    @classmethod
    async def _sweep(cls, engine: Engine) -> None:
        """Remove what dead owners have left, once in the life of a process."""
        if DockerSandbox._is_swept:
            return
        DockerSandbox._is_swept = True
        try:
            await _load_found().sweep(engine)
        except EnclaveError as error:
            logger.warning("what earlier owners left could not be removed: %s", error)

    async def _release(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await load_engine().release(engine)

    async def _find_image(self, engine: Engine, config: DockerSandboxConfig) -> dict[str, Any]:
        """What the engine knows of the image, which is fetched where the config says so."""
        image = None if config.pull == "always" else await engine.image(config.image)
        if image is not None and images.is_for(image, config.platform):
            return image
        if config.pull == "never":
            if image is not None:
                raise SandboxStartError(
                    f"The image {config.image} is for {image.get('Architecture')}, not for "
                    f"{config.platform}",
                    remedy="load the image for that platform, or use pull='missing'",
                )
            raise SandboxStartError(
                f"No such image: {config.image}",
                remedy="build or load it (docker build, docker load), or use pull='missing'",
            )
        await engine.pull(config.image, config.platform, images.Progress(config))
        image = await engine.image(config.image)
        if image is None or not images.is_for(image, config.platform):
            raise SandboxStartError(
                f"The image {config.image} was pulled, but is not there for "
                f"{config.platform or 'this machine'}",
                remedy="check the name of the image and `platform`",
            )
        return image

    async def _make_container(
        self, engine: Engine, config: DockerSandboxConfig, image: dict[str, Any],
        stack: AsyncExitStack,
    ) -> plans.Plan:  # fmt: skip
        """Make and start the container with the first Python that works as its guest."""
        uid = secrets.choice([number for number in _STRICT_USERS if number not in _taken_users])
        _taken_users.add(uid)
        stack.callback(_taken_users.discard, uid)
        stack.push_async_callback(self._end_container, engine)
        place = (str(image["Id"]), config.hardening, config.user)
        known = _working.get(place)
        words: list[str] = []
        for python in sorted(_PYTHONS, key=lambda one: one != known):
            volume = None
            if python == carried.PYTHON:
                volume = await self._carry(engine, config, image, words)
            plan = await self._create(engine, config, image, uid, python, volume)
            try:
                await self._start_guest(engine, stack, python)
            except (SandboxStartError, SandboxLostError) as error:
                is_missing = isinstance(error, SandboxStartError)
                if is_missing and not _is_missing(python, error):
                    raise
                if not is_missing:
                    await self._require_own_end(engine, error)
                words.append(error.message)
                logger.debug("%s does not serve in %s: %s", python, config.image, error.message)
                await engine.remove(self._container)
                if volume is not None and is_missing:
                    await carried.forget(engine, volume)  # somebody has removed it
                self._lost_reason = None  # of a container that was only tried
                continue
            _working[place] = python
            self.metadata["python"] = python
            return plan
        _working.pop(place, None)
        raise SandboxStartError(
            f"No Python works in the image {config.image}: {'; '.join(dict.fromkeys(words))}",
            remedy="use an image whose python3 is a working Python 3.8 or later, or name such a "
            "one as `python_image`",
        )

    async def _start_guest(self, engine: Engine, stack: AsyncExitStack, python: str) -> None:
        """Start the container, and have its first process be a guest."""
        container = self._container
        self._python = python
        attached = self._attached = await engine.attach(container)
        stack.push_async_callback(attached.aclose)
        self._secret = _load_guests().make(attached, is_here=engine.is_here)
        engine.watch.follow(container.id, self._hear)
        await engine.start(container)
        await self._get_guest()

    async def _require_own_end(self, engine: Engine, error: EnclaveError) -> None:
        """Refuse to take for a Python that does not work what others have ended, or its limits, or
        what is only slow."""
        reason = await engine.watch.reason(self._container.id, _REASON_BOUND)
        if reason is None and await engine.runs(self._container):
            raise SandboxStartError(error.message) from error
        if reason is not None and not load_engine().is_own_end(reason):
            raise SandboxStartError(reason) from error

    async def _carry(
        self, engine: Engine, config: DockerSandboxConfig, image: dict[str, Any],
        words: Sequence[str],
    ) -> str:  # fmt: skip
        """The volume with a Python for an image that has none that works.

        Args:
            words: what was said by those that it has.
        """
        try:
            changes = {
                "image": config.python_image,
                "pull": "missing" if config.pull == "always" else config.pull,
                "platform": config.platform or images.platform_of(image),
            }
            donor = await self._find_image(engine, config.model_copy(update=changes))
            return await carried.carry(engine, donor, await self._labels())
        except SandboxStartError as error:
            remedy = f"{error.remedy or 'see the engine'}; or name another image with Python 3.8 "
            raise SandboxStartError(
                f"The image {config.image} has no Python that works, and there is none to give it: "
                f"{'; '.join([error.message, *words])}",
                remedy=f"{remedy}or later as `python_image`, or use one as the image itself",
            ) from error

    async def _labels(self) -> dict[str, str]:
        stays = not self._settings_of_docker.remove_on_exit
        state = "" if self._keeping is None else self._keeping.folder
        return await anyio.to_thread.run_sync(
            lambda: owners.labels(
                self.id,
                self._owner,
                self.created_at,
                kept=stays,
                state=state,
                sandbox_type=self.sandbox_type,
            )
        )

    async def _create(
        self, engine: Engine, config: DockerSandboxConfig, image: dict[str, Any], uid: int,
        python: str, volume: str | None,
    ) -> plans.Plan:  # fmt: skip
        place = (str(image["Id"]), config.working_dir)
        labels = await self._labels()
        own_user = images.config_of(image).get("User") or ""
        while True:
            plan = plans.plan_container(
                config,
                self._limits,
                labels,
                image_user=own_user,
                strict_user=uid,
                folder_is_free=_free_folders.get(place, True),
                carried=None if volume is None else (volume, carried.FOLDER),
                dialect=await engine.dialect(),
            )
            document = {**plan.document, "Entrypoint": loader.argv(python)}
            container = await engine.create(f"sandbox-{self.id}{self._apart}", document)
            self._container = container
            if plan.hosts is not None:
                await engine.write(container, "etc/hosts", plan.hosts)
            self._user = _user_name(plan.document["User"] or own_user)
            if not plan.bounded_folder or place in _free_folders:
                return plan
            # What the image has there would be hidden. Only a container can be asked.
            if not await engine.exists(self._container, config.working_dir):
                _free_folders[place] = True
                return plan
            _free_folders[place] = False
            await engine.remove(self._container)

    async def _end_container(self, engine: Engine) -> None:
        container, self._container = self._container, None
        if container is None:
            return
        process, self._process = self._process, None
        try:
            if self._is_left:
                engine.watch.forget(container.id)
            else:
                await self._destroy(engine, container, process)
        finally:
            if process is not None:
                process.close()

    async def _destroy(self, engine: Engine, container: Any, process: Held | None) -> None:
        if self._keeping is not None:
            await anyio.to_thread.run_sync(kept.forget, self._keeping.folder, self.id)
        if process is not None:
            process.kill()
        try:
            if self._is_whole and not self._settings_of_docker.remove_on_exit:
                await engine.kill(container)
            else:
                await engine.remove(container)
        except EngineUnavailableError as error:
            if process is None or not await process.ends_within(_END_BOUND):
                raise
            logger.warning("container %s has ended; the engine is to remove it: %s", self.id, error)

    async def _run_in_background(self, command: list[str]) -> None:
        settings = self._settings(None, None, None, None, None, None, None)
        request, job = await self._plan_command(command, settings)
        await self._known_commands().start(
            lambda: self._spawn(request), job, timeout=math.inf, tag="command"
        )

    # --- the guest in it ---

    async def _spawn(self, request: SpawnRequest) -> Process:
        user = self._guest_user(request.user)
        if user is not None and self._user != "0":
            raise CapabilityError(
                "users",
                message=f"What runs as user {self._user} cannot start anything as another",
                remedy="leave `user` out, or let the container's user be root",
            )
        limits = plans.program_limits(request.limits or self._limits)
        return await (await self._get_guest()).spawn(replace(request, limits=limits))

    async def _start_kernel(self, request: KernelRequest) -> KernelProcess:
        limits = plans.program_limits(request.limits or self._limits)
        return await super()._start_kernel(replace(request, limits=limits))

    def _guest_user(self, user: str | int | None) -> str | None:
        name = None if user is None else _user_name(str(user))
        return None if name == self._user else name

    async def _connect_guest(self, user: str | int | None) -> GuestConnection:
        engine, container, attached = self._engine, self._container, self._attached
        if engine is None or container is None or attached is None:
            raise SandboxLostError(f"Sandbox {self.id} has no container any more")
        guests, secret, is_first = _load_guests(), self._secret, user is None
        if not is_first:
            attached = await engine.execute(
                container, loader.argv(self._python), user=str(user), workdir="/"
            )
            secret = guests.make(attached, is_here=engine.is_here)
        served = await guests.serve(
            attached,
            container.id,
            secret,
            working_dir=self.config.working_dir,
            on_end=self._see_how_it_ended if is_first else None,
        )
        if is_first:
            self._process = served.process
            self.metadata["channel"] = "engine" if served.process is None else "direct"
        elif served.process is not None:
            served.process.close()
        self._connections.add(served.connection)
        return served.connection

    def _hear(self, reason: str) -> None:
        """What the engine tells of its container."""
        if self._status is SandboxStatus.RUNNING:
            for connection in list(self._connections):  # else calls would try to tidy up
                connection.give_up(reason)
            self._lost(reason)
        elif self._attached is not None:
            self._attached.expect_end()  # its own words say more of a start that failed

    async def _see_how_it_ended(self) -> None:
        engine, container = self._engine, self._container
        reason = None
        if engine is not None and container is not None and self._status is SandboxStatus.RUNNING:
            reason = await engine.watch.reason(container.id, _REASON_BOUND)
        said = "" if self._attached is None else self._attached.said
        self._lost(reason or f"The sandbox's container has ended{': ' + said if said else ''}")


def load_engine() -> ModuleType:
    """The module that talks to engines: it imports much, and files are read for it once."""
    try:
        from ms_enclave.boxes import _docker_engine
    except ModuleNotFoundError as error:
        if error.name not in ("aiodocker", "aiohttp"):
            raise
        raise EngineUnavailableError(
            f"Docker sandboxes need the package {error.name}",
            remedy="pip install 'ms-enclave[docker]'",
        ) from None
    _load_found()
    _load_guests()
    loader.payload()
    return _docker_engine


def _load_guests() -> ModuleType:
    """What makes guests; loaded with the other."""
    from ms_enclave.boxes import _docker_guest

    return _docker_guest


def _load_found() -> ModuleType:
    """What knows the containers that there are; loaded with the other."""
    from ms_enclave.boxes import _docker_found

    return _docker_found


async def _environment_of(guest: GuestConnection) -> dict[str, str]:
    """What the image and the engine have everything that is started find around it."""
    data = b"".join([part async for part in guest.read("/proc/self/environ")])
    rows = [row.partition("=") for row in data.decode("utf-8", "replace").split("\0")]
    return {name: value for name, equals, value in rows if equals}


def _is_missing(python: str, error: SandboxStartError) -> bool:
    """Whether a container did not start because the image has no such program, or none for its
    user."""
    words = str(error)
    return python in words and any(
        word in words for word in ("not found", "no such file", "permission denied")
    )


def _user_name(user: str) -> str:
    """One name for one user."""
    name = user.partition(":")[0]
    return "0" if name in ("", "root") else name


def _require_guards(guards: Mapping[str, str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if guards.get(name) != "on"]
    if missing:
        raise IsolationUnavailableError(
            f"Required guards are not active here: {', '.join(missing)}",
            missing=missing,
            remedy="hardening='strict' gives the most of them; see docs/docker.md",
        )
