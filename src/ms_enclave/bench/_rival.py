"""Run by the interpreter of another library's environment: `_rival.py NAME WHAT IMAGE COUNT`.

Prints a JSON list of ms: of making a sandbox up to the first output of Python (`start`), of a
command in one that runs (`true`), or of stopping and removing one (`stop`). Nothing of ours is
imported here, and what is printed by the library goes to standard error.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from typing import Any

WITHOUT_NETWORK = {"network_mode": "none"}


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
        return (await self.sandbox.execute_tool("python_executor", {"code": "print(1)"})).output

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
    taken: list[float] = []
    box = LIBRARIES[name]()
    if what == "true":
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
    for _ in range(count):
        begun = time.perf_counter()
        await box.start(image)
        if (await box.python()).strip() != "1":
            raise RuntimeError("print(1) did not print 1")
        if what == "stop":
            begun = time.perf_counter()
            await box.stop()
        taken.append(time.perf_counter() - begun)
        if what == "start":
            box.remove()
    return taken


if __name__ == "__main__":
    printed = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    samples = asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
    json.dump([sample * 1000 for sample in samples], printed)
    printed.close()
    os._exit(0)  # what the library has left running is not waited for
