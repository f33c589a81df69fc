"""The one place that talks to a container engine: `aiodocker` with our errors.

Everything here runs on the private loop. One connection pool is shared by all sandboxes of a
process; the last one that lets go of it closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import weakref
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import aiodocker
import aiohttp
import anyio
import anyio.to_thread
from aiodocker.stream import Stream
from aiodocker.volumes import DockerVolume
from yarl import URL

from ms_enclave.boxes import _docker_owner as owners
from ms_enclave.boxes import _docker_seccomp as seccomp
from ms_enclave.boxes._docker_attached import Attached
from ms_enclave.boxes._docker_debts import Debts
from ms_enclave.boxes._docker_errors import UNREACHABLE, explain, unreachable
from ms_enclave.boxes._docker_plan import Dialect, read_engine
from ms_enclave.boxes._docker_watch import ACTIONS, Watch, is_own_end
from ms_enclave.boxes._docker_where import find_engine, is_local
from ms_enclave.errors import EnclaveError, EngineUnavailableError, SandboxLostError
from ms_enclave.utils.archive import tar_file

if TYPE_CHECKING:
    import ssl
    from collections.abc import (
        AsyncGenerator,
        Callable,
        Generator,
        Mapping,
        Sequence,
    )

    from ms_enclave.boxes._docker_plan import Document

__all__ = ["Attached", "Engine", "acquire", "engine", "is_own_end", "release"]

Container = Any
"""A container of `aiodocker`, whose methods are typed in part only."""

BOUNDS = {"work": 60.0, "look": 20.0, "greeting": 8.0, "undo": 8.0}
"""Seconds that an engine may take: to make or start a container, of which it may have fifty to do
at once; to say something; the same while a guest waits to be greeted; and to remove something,
which is done later if it is not done then."""

_ENDED_MEANWHILE = ("is not running", "container state improper")
"""What engines say that were about to kill what has just ended by itself; the second is Podman."""
_REMOVALS = 3
_START_LEFT = 3.0
"""Seconds that a start which nobody waits for any more has to come to its end."""


class Engine:
    """A client of one engine. Made by `acquire`.

    Raises, from every method: `EngineUnavailableError` where the engine does not answer, also not
    in time, and what `_docker_errors` makes of what it answers.
    """

    def __init__(self, docker: aiodocker.Docker, *, is_here: bool = False) -> None:
        self.docker: Any = docker
        """`aiodocker`'s own, with a few private methods for which it has no public ones."""
        self.is_here = is_here
        """Whether its socket is one of this machine, as it seems."""
        self._dialect: Dialect | None = None
        self.users = 0
        self.watch = Watch(self._events, self._states, self._state)
        """Tells what others do to our containers."""
        self._debts = Debts()

    async def aclose(self) -> None:
        """Close its connections, once nothing is owed any more."""
        await self._debts.when_paid(self.docker.close)

    async def dialect(self) -> Dialect:
        """What it understands. Podman's service takes a profile of system calls by the path of a
        file where it runs, which on another machine nobody here can write."""
        if self._dialect is None:
            with _failures("say what it is"):
                found = await self.docker.version()
                same_ids, counts = read_engine(await self.docker.system.info())
            parts: list[dict[str, Any]] = found.get("Components") or []
            if not any("podman" in str(part.get("Name")).lower() for part in parts):
                self._dialect = Dialect(seccomp.profile(), hosts_ids=same_ids, counts=counts)
            else:
                path = None
                if self.is_here:
                    path = await anyio.to_thread.run_sync(seccomp.profile_file)
                self._dialect = Dialect(path, plain_memory=True, hosts_ids=same_ids, counts=counts)
        return self._dialect

    # --- a container's life ---

    async def create(self, name: str, document: Document) -> Container:
        """Make a container, not yet started. What becomes of it is known, or it is removed."""
        making = asyncio.create_task(self.docker.containers.create(document, name=name))
        try:
            await asyncio.wait([making], timeout=BOUNDS["work"])
        except BaseException:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([making], timeout=BOUNDS["undo"])
                await self._take_back(making, document)
            raise
        try:
            with _failures("create the sandbox", bound=None):
                if making.done():
                    return making.result()
                raise _silent(BOUNDS["work"])
        except EngineUnavailableError:
            self._owe_removal(making, document)
            raise

    async def _take_back(self, making: asyncio.Task[Container], document: Document) -> None:
        if not making.done():
            self._owe_removal(making, document)
        elif not making.cancelled() and making.exception() is None:
            with contextlib.suppress(EnclaveError):  # it is owed, or the engine will not
                await self.remove(making.result())

    def _owe_removal(self, making: asyncio.Task[Container], document: Document) -> None:
        """Have removed what an engine may have made before or after it was silent."""
        labels = [f"{name}={value}" for name, value in document["Labels"].items()]

        async def remove_it() -> None:
            await asyncio.wait([making])
            if not making.cancelled():
                making.exception()  # it is looked for in any case
            for row in await self.list(labels):
                await self._remove_at_last(self.container(str(row["Id"])))

        self._debts.owe("a container that was being made", remove_it)

    async def start(self, container: Container) -> None:
        """Start it. Whoever is cancelled waits a moment for the end of that: engines have been seen
        to leave a container running that was removed while they started it."""
        starting = asyncio.ensure_future(container.start())
        try:
            with _failures("start the sandbox", bound="work"):
                await asyncio.shield(starting)
        finally:
            if not starting.done():
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([starting], timeout=_START_LEFT)
                starting.cancel()
            if not starting.cancelled() and starting.done():
                starting.exception()  # known to whoever was not cancelled

    async def attach(self, container: Container) -> Attached:
        """Its standard streams. What comes before it has started waits for it."""
        with _failures("attach to the sandbox"):
            stream = Stream(self.docker, lambda: _where_to_attach(container.id))
            await _open(stream)
            return Attached(stream, lambda: self._first_process(container))

    async def _first_process(self, container: Container) -> int:
        with _failures("look at the sandbox", running=True, bound="greeting"):
            return int((await self.inspect(container))["State"].get("Pid") or 0)

    async def inspect(self, container: Container) -> dict[str, Any]:
        """What the engine knows of it now."""
        with _failures("look at the sandbox", running=True):
            return await container.show()

    async def runs(self, container: Container) -> bool:
        """Whether it runs; it may have gone."""
        try:
            return bool((await self.inspect(container))["State"].get("Running"))
        except SandboxLostError:
            return False

    async def runtime(self, container: Container) -> str:
        """What runs it, by the engine's name. Asked for only where that is not known already."""
        facts = container._container
        if "HostConfig" not in facts:
            facts = await self.inspect(container)
        return str(facts["HostConfig"].get("Runtime") or "")

    async def execute(
        self,
        container: Container,
        argv: Sequence[str],
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
    ) -> Attached:
        """Start a further process in it, attached."""
        with _failures("start a process in the sandbox", running=True):
            made = await container.exec(
                list(argv), stdin=True, user=user, environment=env, workdir=workdir
            )
            stream = made.start()
            await _open(stream)

        async def find_pid() -> int:
            with _failures("look at a process of the sandbox", running=True, bound="greeting"):
                return int((await made.inspect()).get("Pid") or 0)

        return Attached(stream, find_pid)

    async def set_paused(self, container: Container, paused: bool) -> None:
        """Have everything in it stand still, or go on; it may do so already."""
        doing = "pause the sandbox" if paused else "resume the sandbox"
        story = self.watch.story_of(container.id)
        with _failures(doing, running=True, bound="work"):
            if paused:
                story.change(True)
            try:
                await (container.pause() if paused else container.unpause())
            except aiodocker.DockerError as error:
                if not re.search(r"is (already|not) paused", str(error)):
                    raise
            if not paused:
                story.change(False)

    async def remove(self, container: Container) -> None:
        """Kill and remove it, with its anonymous volumes; it may have gone by itself.

        Where the engine does not answer, that is an error, and it is done when it does.
        """
        self.watch.forget(container.id)
        try:
            with _failures("remove the sandbox", running=True, bound="undo"):
                await self._remove(container)
        except EngineUnavailableError:
            self._debts.owe(f"container {container.id}", lambda: self._remove_at_last(container))
            raise

    async def _remove_at_last(self, container: Container) -> None:
        with _failures("remove the sandbox", bound=None):
            await self._remove(container)

    async def _remove(self, container: Container) -> None:
        for left in reversed(range(_REMOVALS)):
            try:
                await container.delete(force=True, v=True)
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return
                if error.status == 409:
                    await self._wait_for_removal(container)  # somebody is at it already
                    return
                # It ended by itself while the engine was about to kill it: then it is to be asked
                # once more.
                if not left or not any(word in str(error.message) for word in _ENDED_MEANWHILE):
                    raise
            else:
                return

    async def _wait_for_removal(self, container: Container) -> None:
        try:
            await container.wait(condition="removed")
        except aiodocker.DockerError as error:
            if error.status != 404:
                raise

    async def kill(self, container: Container) -> None:
        """Kill it and leave it there, stopped."""
        self.watch.forget(container.id)
        with _failures("stop the sandbox", running=True, bound="undo"):
            try:
                await container.kill()
            except aiodocker.DockerError as error:
                if error.status not in (404, 409):  # it is not there, or does not run
                    raise
            with contextlib.suppress(aiodocker.DockerError):
                await container.wait()

    # --- what there is ---

    async def image(self, name: str) -> dict[str, Any] | None:
        """What the engine knows of an image; None where it has none of that name."""
        with _failures("look at the image"):
            try:
                return await self.docker.images.inspect(name)
            except aiodocker.DockerError as error:
                if error.status != 404:
                    raise
                return None

    async def pull(
        self, name: str, platform: str | None, tell: Callable[[dict[str, Any]], object]
    ) -> None:
        """Fetch an image; what the engine tells of it meanwhile is handed on."""
        with _failures(f"pull the image {name}", bound=None):
            async for news in self.docker.images.pull(name, platform=platform, stream=True):
                tell(news)

    async def build(
        self,
        archive: bytes,
        name: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        tell: Callable[[dict[str, Any]], object],
    ) -> None:
        """Build an image from an archive with a Dockerfile; what the engine tells meanwhile is
        handed on. Cancelled, or where it fails, the images of its first steps are left."""
        params = {
            "t": name, "rm": "1", "forcerm": "1", "labels": json.dumps(dict(labels)),
            "buildargs": json.dumps(dict(arguments)),
        }  # fmt: skip
        headers = {"Content-Type": "application/x-tar"}
        doing, said = f"build the image {name}", ""
        with _failures(doing, bound=None):
            async with self.docker._query(
                "build", "POST", params=params, data=io.BytesIO(archive), headers=headers,
                timeout=aiohttp.ClientTimeout(),
            ) as answer:  # fmt: skip
                try:
                    async for line in answer.content:
                        news: dict[str, Any] = json.loads(line) if line.strip() else {}
                        if "error" in news:
                            raise explain(500, f"{news['error']}: {said.strip()}", doing)
                        said = f"{said}{news.get('stream', '')}"[-2000:]
                        tell(news)
                finally:
                    answer.close()

    async def images(self, labels: Sequence[str], *, replaced: bool = False) -> Sequence[str]:
        """The ids of the images with all these labels: those of steps of a build too, or only what
        another has got the name of."""
        filters: dict[str, Sequence[str]] = {"label": labels}
        if replaced:
            filters["dangling"] = ["true"]
        params = {"filters": json.dumps(filters), "all": "0" if replaced else "1"}
        with _failures("list the images"):
            found = await self.docker._query_json("images/json", params=params)
            return [str(row["Id"]) for row in found]

    async def remove_image(self, name: str) -> None:
        """Remove an image that nothing has, by its id."""
        with _failures("remove an image"):
            await self.docker.images.delete(name)

    async def exists(self, container: Container, path: str) -> bool:
        """Whether there is anything at a path of a container that does not run."""
        with _failures("look into the image"):
            url = f"containers/{container.id}/archive"
            try:
                async with self.docker._query(url, "GET", params={"path": path}) as found:
                    found.close()  # all that is there would come
                    return True
            except aiodocker.DockerError as error:
                if error.status != 404:
                    raise
                return False

    async def list(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """The containers with all these labels, those that do not run too."""
        with _failures("list the sandboxes"):
            return await self._rows({"label": list(labels)})

    async def users_of(self, volume: str) -> list[dict[str, Any]]:
        """The containers that have a volume, those that do not run too."""
        with _failures("list its containers"):
            return await self._rows({"volume": [volume]})

    async def _rows(self, filters: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        words = json.dumps({name: list(values) for name, values in filters.items()})
        found = await self.docker.containers.list(all=True, filters=words)
        return [one._container for one in found]

    async def write(self, container: Container, name: str, text: str) -> None:
        """Write a file of a container that does not run; `name` is relative to its root."""
        with _failures("prepare the sandbox"):
            await container.put_archive("/", tar_file(name, text.encode()))

    async def volumes(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """The volumes with all these labels."""
        with _failures("list its volumes"):
            found = await self.docker.volumes.list(filters={"label": list(labels)})
            return found.get("Volumes") or []

    async def make_volume(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a volume; one of that name that is there stays as it is."""
        with _failures("make a volume"):
            await self.docker.volumes.create({"Name": name, "Labels": dict(labels)})

    async def remove_volume(self, name: str) -> bool:
        """Remove it, if it is there; False where a container has it.

        Where the engine does not answer, that is an error, and it is done when it does.
        """
        try:
            with _failures("remove a volume", bound="undo"):
                return await self._remove_volume(name)
        except EngineUnavailableError:
            self._debts.owe(f"volume {name}", lambda: self._remove_volume_at_last(name))
            raise

    async def _remove_volume_at_last(self, name: str) -> None:
        with _failures("remove a volume", bound=None):
            await self._remove_volume(name)

    async def _remove_volume(self, name: str) -> bool:
        try:
            await DockerVolume(self.docker, name).delete()
        except aiodocker.DockerError as error:
            if error.status == 409:
                return False
            if error.status != 404:
                raise
        return True

    def container(self, name: str) -> Container:
        """A container by its id or name, whether or not it is there."""
        return self.docker.containers.container(name)

    async def _events(self) -> AsyncGenerator[dict[str, Any], None]:
        """What happens to containers of ours, from now on; first of all, that it can be heard."""
        filters = {"type": ["container"], "label": [owners.SANDBOX], "event": list(ACTIONS)}
        with _failures("tell of its containers", bound=None):
            async with self.docker._query(
                "events", params={"filters": json.dumps(filters)}, timeout=aiohttp.ClientTimeout()
            ) as heard:
                try:
                    yield {}
                    async for line in heard.content:
                        if line.strip():
                            yield json.loads(line)
                finally:
                    heard.close()

    async def _states(self) -> dict[str, str]:
        rows = await self.list([owners.SANDBOX])
        return {str(row.get("Id", "")): str(row.get("State", "")) for row in rows}

    async def _state(self, container: str) -> str | None:
        # Its own page and not the list, which Docker writes after it has told of the event.
        with _failures("look at the sandbox"):
            try:
                shown = await self.docker.containers.container(container).show()
            except aiodocker.DockerError as error:
                if error.status != 404:
                    raise
                return None
        state: Mapping[str, Any] = shown.get("State") or {}
        return str(state.get("Status", ""))


async def _where_to_attach(container: str) -> tuple[URL, bytes | None, bool]:
    words = {"stdin": "1", "stdout": "1", "stderr": "1", "stream": "1", "logs": "0"}
    return URL(f"containers/{container}/attach").with_query(words), None, False


async def _open(stream: Stream) -> None:
    # All that `async with` would do; it lives longer than a block.
    try:
        await stream._init()  # pyright: ignore[reportPrivateUsage]
    except BaseException:
        with contextlib.suppress(AssertionError):
            await stream.close()
        raise


def _silent(seconds: float) -> EngineUnavailableError:
    return unreachable(f"it did not answer within {seconds:g} s")


@contextmanager
def _failures(doing: str, *, running: bool = False, bound: str | None = "look") -> Generator[None]:
    seconds = None if bound is None else BOUNDS[bound]
    try:
        with nullcontext() if seconds is None else anyio.fail_after(seconds):
            yield
    except aiodocker.DockerError as error:
        raise explain(error.status, str(error.message), doing, running=running) from error
    except TimeoutError as error:
        raise (unreachable(str(error)) if seconds is None else _silent(seconds)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise explain(UNREACHABLE, str(error) or type(error).__name__, doing) from error


# --- the shared client ---

_engines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Engine]
_engines = weakref.WeakKeyDictionary()


async def acquire() -> Engine:
    """The engine that the environment or the current context names. To be released.

    Raises:
        EngineUnavailableError: none is named, and none listens at the usual places.
    """
    loop = asyncio.get_running_loop()
    engine = _engines.get(loop)
    if engine is None:
        url, tls = await anyio.to_thread.run_sync(find_engine)
        engine = _engines.get(loop)
        if engine is None:
            engine = _engines[loop] = _client(url, tls)
    engine.users += 1
    return engine


async def release(engine: Engine) -> None:
    """Let go of it; the last to do so closes its connections, once nothing is owed any more."""
    engine.users -= 1
    if engine.users == 0:
        _engines.pop(asyncio.get_running_loop(), None)
        await engine.aclose()


@asynccontextmanager
async def engine() -> AsyncGenerator[Engine]:
    """The engine for as long as the block takes. Raises as `acquire`."""
    found = await acquire()
    try:
        yield found
    finally:
        with anyio.CancelScope(shield=True):
            await release(found)


def _client(url: str, tls: ssl.SSLContext | None) -> Engine:
    docker = aiodocker.Docker(url=url, ssl_context=tls)
    # Each sandbox holds a connection of its own: the usual hundred would be used up by as many.
    docker.connector._limit = 0  # pyright: ignore[reportPrivateUsage] - else it cannot be made here
    return Engine(docker, is_here=is_local(url))
