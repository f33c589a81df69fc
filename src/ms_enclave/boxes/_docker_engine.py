"""The one place that talks to a container engine: `aiodocker` with our errors.

Everything here runs on the private loop. One connection pool is shared by all sandboxes of a
process; the last one that lets go of it closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import weakref
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiodocker
import aiohttp
import anyio
import anyio.to_thread
from anyio.abc import ByteStream
from typing_extensions import override

from ms_enclave.boxes._docker_errors import UNREACHABLE, explain, unreachable

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence

    from aiodocker.stream import Stream

    from ms_enclave.boxes._docker_plan import Document

__all__ = ["Attached", "Engine", "acquire", "engine", "release"]

T = TypeVar("T")
Container = Any
"""A container of `aiodocker`, whose methods are typed in part only."""

_ANSWER_BOUND = 60.0
"""Seconds that an engine may take to make a container, whoever waits."""

_STDOUT = 1
_KEPT_WORDS = 4096
"""Bytes of what a container says beside its channel that are kept, for error messages."""


class Engine:
    """A client of one engine. Made by `acquire`.

    Raises, from every method: `EngineUnavailableError` where the engine does not answer, and what
    `_docker_errors` makes of what it answers.
    """

    def __init__(self, docker: aiodocker.Docker) -> None:
        self.docker: Any = docker
        """`aiodocker`'s own, with a few private methods for which it has no public ones."""
        self.users = 0

    async def create(self, name: str, document: Document) -> Container:
        """Make a container, not yet started. Done to its end whatever happens to the caller."""
        with _failures("create the sandbox"):
            return await _to_its_end(self.docker.containers.create(document, name=name))

    async def start(self, container: Container) -> None:
        """Start it."""
        with _failures("start the sandbox"):
            await container.start()

    async def attach(self, container: Container) -> tuple[Attached, dict[str, Any]]:
        """Its standard streams, and what the engine knows of it."""
        with _failures("attach to the sandbox"):
            stream = container.attach(stdin=True, stdout=True, stderr=True)
            await _open(stream)
            return Attached(stream), container._container  # it has just asked for that itself

    async def inspect(self, container: Container) -> dict[str, Any]:
        """What the engine knows of it now."""
        with _failures("look at the sandbox", running=True):
            return await container.show()

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
            return Attached(stream)

    async def remove(self, container: Container) -> None:
        """Kill and remove it, with its anonymous volumes; it may have gone by itself."""
        with _failures("remove the sandbox", running=True):
            try:
                await container.delete(force=True, v=True)
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return
                if error.status != 409:
                    raise
                await self._wait_for_removal(container)  # somebody is at it already

    async def _wait_for_removal(self, container: Container) -> None:
        try:
            await container.wait(condition="removed")
        except aiodocker.DockerError as error:
            if error.status != 404:
                raise

    async def kill(self, container: Container) -> None:
        """Kill it and leave it there, stopped."""
        with _failures("stop the sandbox", running=True):
            try:
                await container.kill()
            except aiodocker.DockerError as error:
                if error.status not in (404, 409):  # it is not there, or does not run
                    raise
            with contextlib.suppress(aiodocker.DockerError):
                await container.wait()

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
        with _failures(f"pull the image {name}"):
            async for news in self.docker.images.pull(name, platform=platform, stream=True):
                tell(news)

    async def exists(self, container: Container, path: str) -> bool:
        """Whether there is anything at a path of a container that does not run."""
        with _failures("look into the image"):
            url = f"containers/{container.id}/archive"
            try:
                async with self.docker._query(url, "GET", params={"path": path}):
                    return True
            except aiodocker.DockerError as error:
                if error.status != 404:
                    raise
                return False

    async def list(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """The containers with all these labels, those that do not run too."""
        with _failures("list the sandboxes"):
            filters = json.dumps({"label": list(labels)})
            found = await self.docker.containers.list(all=True, filters=filters)
            return [one._container for one in found]

    def container(self, name: str) -> Container:
        """A container by its id or name, whether or not it is there."""
        return self.docker.containers.container(name)


async def _to_its_end(step: Coroutine[Any, Any, T]) -> T:
    """Have the engine finish what it was asked for: what it makes must be known to us."""
    with anyio.move_on_after(_ANSWER_BOUND, shield=True):
        return await step
    raise unreachable(f"it did not answer within {_ANSWER_BOUND:g} s")


async def _open(stream: Stream) -> None:
    # All that `async with` would do; it lives longer than a block.
    try:
        await stream._init()  # pyright: ignore[reportPrivateUsage]
    except BaseException:
        with contextlib.suppress(AssertionError):
            await stream.close()
        raise


@contextmanager
def _failures(doing: str, *, running: bool = False) -> Generator[None]:
    try:
        yield
    except aiodocker.DockerError as error:
        raise explain(error.status, str(error.message), doing, running=running) from error
    except (aiohttp.ClientError, OSError) as error:
        raise explain(UNREACHABLE, str(error) or type(error).__name__, doing) from error


class Attached(ByteStream):
    """Standard input and output of a process in a container, as one stream.

    What comes on its standard error is kept, as far as it is worth a message: `said`.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rest = b""
        self._said = bytearray()
        self._closed = False
        self.on_end: Callable[[], object] | None = None
        """Told when the process has ended, unless `aclose` was first."""

    @property
    def said(self) -> str:
        """The last words on standard error."""
        return self._said.decode("utf-8", "replace").strip()

    @override
    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes."""
        while not self._rest:
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                message = await self._stream.read_out()
            except (aiohttp.ClientError, OSError) as error:
                self._tell_of_end()
                raise anyio.BrokenResourceError from error
            if message is None:
                self._tell_of_end()
                raise anyio.EndOfStream
            if message.stream == _STDOUT:
                self._rest = message.data
            else:
                self._said += message.data
                del self._said[:-_KEPT_WORDS]
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return data

    def _tell_of_end(self) -> None:
        if self.on_end is not None and not self._closed:
            self.on_end()

    @override
    async def send(self, item: bytes) -> None:
        """Send all of it."""
        if self._closed:
            raise anyio.ClosedResourceError
        try:
            await self._stream.write_in(item)
        except (aiohttp.ClientError, OSError, RuntimeError, AssertionError) as error:
            # The last two are how `aiodocker` says that the other end has hung up.
            raise anyio.BrokenResourceError from error

    @override
    async def send_eof(self) -> None:
        """Not to be had without the way back."""
        await self.aclose()

    @override
    async def aclose(self) -> None:
        """Hang up. May be called twice."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(aiohttp.ClientError, OSError, AssertionError):
                await self._stream.close()


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
        where = await anyio.to_thread.run_sync(_where)
        engine = _engines.get(loop)
        if engine is None:
            engine = _engines[loop] = Engine(where())
    engine.users += 1
    return engine


async def release(engine: Engine) -> None:
    """Let go of it; the last to do so closes its connections."""
    engine.users -= 1
    if engine.users == 0:
        _engines.pop(asyncio.get_running_loop(), None)
        await engine.docker.close()


@asynccontextmanager
async def engine() -> AsyncGenerator[Engine]:
    """The engine for as long as the block takes. Raises as `acquire`."""
    found = await acquire()
    try:
        yield found
    finally:
        with anyio.CancelScope(shield=True):
            await release(found)


def _where() -> Callable[[], aiodocker.Docker]:
    """Find out where the engine is, which reads files; what is returned makes the client."""
    try:
        host, tls = _named()
    except aiodocker.DockerError as error:
        raise explain(error.status, str(error), "be found") from error
    if host is None:
        host = next((f"unix://{place}" for place in _usual_places() if place.is_socket()), None)
    if host is None:
        raise unreachable("there is none at the usual places")
    url = host
    return lambda: aiodocker.Docker(url=url, ssl_context=tls)


def _named() -> tuple[str | None, ssl.SSLContext | None]:
    """What the current context or the environment names, as `docker` itself understands them."""
    docker = aiodocker.Docker
    host, tls = os.environ.get("DOCKER_HOST") or None, None
    if host is None or "DOCKER_CONTEXT" in os.environ:
        endpoint = docker._get_docker_context_endpoint()  # pyright: ignore[reportPrivateUsage] - else it reads files on the loop
        if endpoint is not None:
            return endpoint.host, docker._create_context_ssl_context(endpoint)  # pyright: ignore[reportPrivateUsage] - the same
    if host is not None and os.environ.get("DOCKER_TLS_VERIFY", "0") == "1":
        tls = docker._docker_machine_ssl_context()  # pyright: ignore[reportPrivateUsage] - the same
    return host, tls


def _usual_places() -> list[Path]:
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    return [
        Path("/run/docker.sock"),
        Path("/var/run/docker.sock"),
        Path.home() / ".docker/run/docker.sock",
        runtime / "docker.sock",
        runtime / "podman/podman.sock",
        Path("/run/podman/podman.sock"),
    ]
