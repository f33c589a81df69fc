"""Run by the interpreter of another library's environment: `_rival.py NAME WHAT IMAGE COUNT`.

Prints a JSON list of ms: of making a sandbox up to the first output of Python (`start`), of a
command in one that runs (`true`), of stopping and removing one (`stop`), of making COUNT at once up
to the last first output (`crowd`, one figure), or of making one that keeps variables up to the
output of its first cell (`notebook`). Nothing of ours is imported here, and what is printed by the
library goes to standard error.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WITHOUT_NETWORK = {"network_mode": "none"}
ENVIRONMENT = "/opt/jupyter"
"""Where the image of notebooks has what a notebook needs."""
SERVE = ["jupyter-kernelgateway", "--KernelGatewayApp.ip=0.0.0.0", "--KernelGatewayApp.port=8888"]


class LlmSandbox:
    """`llm-sandbox`, without what it would install from the network at each start."""

    async def start(self, image: str) -> None:
        library: Any = importlib.import_module("llm_sandbox")
        self.session: Any = library.SandboxSession(
            lang="python", image=image, keep_template=True, skip_environment_setup=True,
            runtime_configs=WITHOUT_NETWORK,
        )  # fmt: skip
        self.session.open()

    async def python(self) -> str:
        return self.session.run("print(1)").stdout

    async def command(self) -> int:
        return self.session.execute_command("true").exit_code

    async def notebook(self, image: str) -> str:
        library: Any = importlib.import_module("llm_sandbox")
        self.session = library.InteractiveSandboxSession(
            image=image, keep_template=True, skip_environment_setup=True,
            runtime_configs=WITHOUT_NETWORK,
        )  # fmt: skip
        self.session._python_exec_path = f"{ENVIRONMENT}/bin/python"
        self.session._pip_exec_path = f"{ENVIRONMENT}/bin/pip"
        self.session.open()
        return await self.python()

    async def stop(self) -> None:
        self.session.close()

    def remove(self) -> None:
        self.session.container.remove(force=True)


class OlderEnclave:
    """The package that has had the name `ms-enclave` before us."""

    async def start(self, image: str) -> None:
        boxes: Any = importlib.import_module("ms_enclave.sandbox.boxes")
        model: Any = importlib.import_module("ms_enclave.sandbox.model")
        config = model.DockerSandboxConfig(
            image=image, network_enabled=False, tools_config={"python_executor": {}}
        )
        self.sandbox: Any = boxes.SandboxFactory.create_sandbox(model.SandboxType.DOCKER, config)
        await self.sandbox.start()

    async def python(self) -> str:
        return await self._print("python_executor")

    async def _print(self, tool: str) -> str:
        return (await self.sandbox.execute_tool(tool, {"code": "print(1)"})).output

    async def notebook(self, image: str) -> str:
        """Reached through a port that it publishes, so with a network."""
        boxes: Any = importlib.import_module("ms_enclave.sandbox.boxes")
        model: Any = importlib.import_module("ms_enclave.sandbox.model")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = model.DockerNotebookConfig(
            image=image, port=port, command=SERVE, tools_config={"notebook_executor": {}}
        )
        kind = model.SandboxType.DOCKER_NOTEBOOK
        self.sandbox = boxes.SandboxFactory.create_sandbox(kind, config)
        await self.sandbox.start()
        return await self._print("notebook_executor")

    async def command(self) -> int:
        return (await self.sandbox.execute_command(["true"])).exit_code

    async def stop(self) -> None:
        await self.sandbox.stop()
        await self.sandbox.cleanup()

    def remove(self) -> None:
        self.sandbox.container.remove(force=True)


LIBRARIES: dict[str, type[LlmSandbox | OlderEnclave]] = {
    "llm-sandbox": LlmSandbox,
    "older ms-enclave": OlderEnclave,
}


async def main(name: str, what: str, image: str, count: int) -> list[float]:
    make = LIBRARIES[name]
    if what == "crowd":
        return [await crowd([make() for _ in range(count)], image)]
    if what == "true":
        return await commands(make(), image, count)
    taken: list[float] = []
    for _ in range(count):
        box = make()
        begun = time.perf_counter()
        check(await (box.notebook(image) if what == "notebook" else first_output(box, image)))
        if what == "stop":
            begun = time.perf_counter()
            await box.stop()
        taken.append(time.perf_counter() - begun)
        if what != "stop":
            box.remove()
    return taken


async def first_output(box: LlmSandbox | OlderEnclave, image: str) -> str:
    await box.start(image)
    return await box.python()


def check(output: str) -> None:
    if output.strip() != "1":
        raise RuntimeError("print(1) did not print 1")


async def commands(box: LlmSandbox | OlderEnclave, image: str, count: int) -> list[float]:
    taken: list[float] = []
    await box.start(image)
    try:
        for _ in range(count):
            begun = time.perf_counter()
            if await box.command() != 0:
                raise RuntimeError("true has failed")
            taken.append(time.perf_counter() - begun)
    finally:
        box.remove()
    return taken


async def crowd(boxes: list[Any], image: str) -> float:
    """Seconds. Each in a thread and a loop of its own: one of the libraries waits for nothing."""

    def one(box: Any) -> None:
        check(asyncio.run(first_output(box, image)))

    try:
        with ThreadPoolExecutor(len(boxes)) as pool:
            begun = time.perf_counter()
            list(pool.map(one, boxes))
            return time.perf_counter() - begun
    finally:
        for box in boxes:
            box.remove()


if __name__ == "__main__":
    printed = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    samples = asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
    json.dump([sample * 1000 for sample in samples], printed)
    printed.close()
    os._exit(0)  # what the library has left running is not waited for
