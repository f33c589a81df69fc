"""The gateway in a notebook's container: started, waited for, asked for kernels, ended.

It listens on the container's own loopback unless its sandbox publishes a port, and answers only
those who know its token. The token is in the environment that it is started with, which other
users of the host cannot read; programs in the sandbox may know it.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

import anyio

from ms_enclave.boxes._notebook_client import GatewayClient
from ms_enclave.boxes._notebook_kernel import GatewayKernel
from ms_enclave.channel.process import SpawnRequest
from ms_enclave.errors import EnclaveError, PortRefusedError, SandboxLostError, SandboxStartError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ms_enclave.boxes._notebook_client import Channels
    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.process import KernelRequest, Process

__all__ = ["FOLDER", "Gateway", "load_files"]

FOLDER = "/tmp/.ms-enclave-notebook"  # noqa: S108 - the container's own
"""What the gateway and its kernels find in the container."""

_START_BOUND = 60.0
_LOOK_AGAIN = 0.02
_KEPT_WORDS = 4096
_BESIDE = 1 << 20
"""Bytes that a message has beside what is shown."""

_START = (
    "command -v jupyter-kernelgateway >/dev/null || "
    "{ echo 'jupyter-kernelgateway: not found' >&2; exit 127; }; "
    'exec jupyter-kernelgateway --config="$0"'
)


@cache
def load_files() -> Mapping[str, bytes]:
    """What is written into the container, by name. Reads files once."""
    folder = files("ms_enclave.boxes.notebook")
    names = ("gateway_config.py", "kernel_launcher.py")
    return {name: folder.joinpath(name).read_bytes() for name in names}


class Gateway:
    """One gateway. To be closed.

    Args:
        environment: what it finds around it, beside what is its own.
        published: whether it is to be reached from outside of the container too.
    """

    def __init__(
        self,
        guest: GuestConnection,
        spawn: Callable[[SpawnRequest], Awaitable[Process]],
        *,
        image: str,
        port: int,
        token: str,
        environment: Mapping[str, str],
        working_dir: str,
        published: bool,
    ) -> None:
        self._guest = guest
        self._spawn = spawn
        self._image = image
        self._port = port
        self._working_dir = working_dir
        self._environment = {
            **environment,
            "JUPYTER_PATH": f"{FOLDER}/share",
            "JUPYTER_RUNTIME_DIR": f"{FOLDER}/runtime",
            "JUPYTER_DATA_DIR": f"{FOLDER}/data",
            "JUPYTER_CONFIG_DIR": f"{FOLDER}/config",
            "MS_ENCLAVE_TOKEN": token,
            "MS_ENCLAVE_IP": "0.0.0.0" if published else "127.0.0.1",  # noqa: S104 - the container's
            "MS_ENCLAVE_PORT": str(port),
        }
        self._process: Process | None = None
        self._listeners: list[asyncio.Task[None]] = []
        self._said = bytearray()
        self._python = ""
        self._forgetting: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()
        self.url = f"http://127.0.0.1:{port}"
        self._client = GatewayClient(lambda: guest.connect_port(port), self.url, token)

    # --- its life ---

    async def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            SandboxStartError: it ended, or it did not answer in time.
        """
        for name, data in load_files().items():
            await self._guest.write(f"{FOLDER}/{name}", data, mode=0o600)
        await self._launch()

    async def _launch(self) -> None:
        argv = ("sh", "-c", _START, f"{FOLDER}/gateway_config.py")
        process = self._process = await self._spawn(
            SpawnRequest(argv=argv, cwd=self._working_dir, env=self._environment)
        )
        self._said.clear()
        self._listeners = [
            asyncio.create_task(self._listen(stream)) for stream in (process.stdout, process.stderr)
        ]
        ending = asyncio.create_task(process.wait())
        answering = asyncio.create_task(self._wait_for_answer())
        try:
            await asyncio.wait(
                [ending, answering], timeout=_START_BOUND, return_when=asyncio.FIRST_COMPLETED
            )
            if answering.done():
                await answering
            elif ending.done():
                await asyncio.gather(*self._listeners, return_exceptions=True)
                raise self._failed(f"it ended with exit code {ending.result().exit_code}")
            else:
                raise self._failed(f"it did not answer within {_START_BOUND:g} s")
        finally:
            for task in (ending, answering):
                task.cancel()
            await asyncio.gather(ending, answering, return_exceptions=True)
        self._python = await self._read(f"{FOLDER}/python")

    def _failed(self, why: str) -> SandboxStartError:
        said = self._said.decode("utf-8", "replace").strip()[-2000:]
        if re.search(r"not found|No module named", said):
            return SandboxStartError(
                f"The image {self._image} lacks what a notebook needs: {said}",
                remedy="install jupyter_kernel_gateway and ipykernel in it, or leave `image` out "
                "and name it as `base_image`",
            )
        return SandboxStartError(f"The notebook's gateway did not start: {why}: {said}")

    async def _listen(self, stream: Any) -> None:
        with suppress(
            anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError,
            SandboxLostError,
        ):  # fmt: skip
            while True:
                self._said += await stream.receive()
                del self._said[:-_KEPT_WORDS]

    async def _wait_for_answer(self) -> None:
        while True:
            try:
                (await self._guest.connect_port(self._port)).close()
                break
            except PortRefusedError:
                await asyncio.sleep(_LOOK_AGAIN)
        await self._client.ask("GET", "/api")

    async def _read(self, path: str) -> str:
        try:
            data = b"".join([part async for part in self._guest.read(path, limit=4096)])
        except OSError as error:
            raise self._failed(f"{path}: {error}") from error
        return data.decode("utf-8", "replace").strip()

    async def _ensure(self) -> None:
        """Start it again where it has ended: its kernels are lost, the sandbox is not."""
        async with self._starting:
            process = self._process
            if process is None:
                raise SandboxLostError("The notebook's gateway was ended")
            try:
                (await self._guest.connect_port(self._port)).close()
            except PortRefusedError:
                await process.aclose()
                await self._launch()

    async def aclose(self) -> None:
        """End it with all that it started. May be called twice."""
        process, self._process = self._process, None
        for task in [*self._listeners, *self._forgetting]:
            task.cancel()
        await self._client.aclose()
        if process is not None:
            await process.aclose()

    # --- kernels ---

    async def start_kernel(self, request: KernelRequest) -> tuple[str, GatewayKernel]:
        """A new kernel, and what the gateway calls it.

        Raises:
            SandboxLostError: the gateway does not answer.
        """
        await self._ensure()
        made = await self._client.ask("POST", "/api/kernels", {"name": "ms-enclave"})
        name = str(cast("dict[str, Any]", made).get("id")) if isinstance(made, dict) else ""
        if not re.fullmatch(r"[0-9A-Za-z-]{1,64}", name):
            raise SandboxLostError("The notebook's gateway gave a kernel that is none")
        most = 10 << 20 if request.limits is None else request.limits.output
        facts = {"preload": list(request.preload), "seed": request.seed, "most": most}
        connection_file = f"{FOLDER}/runtime/kernel-{name}.json"
        try:
            process = await self._spawn(
                SpawnRequest(
                    argv=(
                        self._python, f"{FOLDER}/kernel_launcher.py", connection_file,
                        json.dumps(facts),
                    ),
                    cwd=request.cwd,
                    env={**request.env, "JUPYTER_RUNTIME_DIR": f"{FOLDER}/runtime"},
                    limits=request.limits,
                )
            )  # fmt: skip
        except BaseException:
            self._forget(name)
            raise

        async def open_channels(session: str) -> Channels:
            return await self._client.channels(name, session, 2 * most + _BESIDE)

        return name, GatewayKernel(process, open_channels, lambda: self._forget(name))

    def _forget(self, name: str) -> None:
        """Have the gateway drop a kernel that has ended; nobody waits for that."""
        if self._process is not None:
            task = asyncio.create_task(self._drop(name))
            self._forgetting.add(task)
            task.add_done_callback(self._forgetting.discard)

    async def _drop(self, name: str) -> None:
        with suppress(EnclaveError):
            await self._client.ask("DELETE", f"/api/kernels/{name}")
