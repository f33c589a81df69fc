"""Uses a server for as long as it is told to: creations, calls, streams, cancels, kills; and looks
at its memory and descriptors meanwhile: `python -m tests.support.soak_http [SECONDS] [SEED]`.

Prints a line a minute and, last, what it found as JSON; 1 where something was left, or unanswered,
or where the server had more memory or descriptors in the last quarter than in the second.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ms_enclave.errors import EnclaveError
from ms_enclave.loop import call
from ms_enclave.manager import HttpSandboxManager
from ms_enclave.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ms_enclave.boxes import Sandbox

KEY = "a key of the soak, long enough"
AT_ONCE = 24
CALLS_OF_A_BOX = 200
UNANSWERED_SECONDS = 120.0
MORE_KIB = 4096
"""That is no growth: what a server remembers of its last calls has an end, but no small one."""
MORE_DESCRIPTORS = 3 * AT_ONCE
"""The same: so many come and go."""
CONFIG: dict[str, Any] = {"tools_config": {"file_operation": {}, "python_executor": {}}}


class Soak:
    """What was done so far, and how it ended."""

    def __init__(self, url: str, chance: random.Random, until: float) -> None:
        self.manager = HttpSandboxManager(base_url=url, api_key=KEY)
        self.chance = chance
        self.until = until
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def work(self) -> None:
        """One sandbox after the other, each used for a while."""
        while time.monotonic() < self.until:
            box = await self.manager.get_sandbox(await self._made())
            assert box is not None
            try:
                for _ in range(CALLS_OF_A_BOX):
                    await self._one(box)
            finally:
                with anyio.CancelScope(shield=True):
                    await self.manager.delete_sandbox(box.id)

    async def _made(self) -> str:
        self.done["create"] += 1
        return await self.manager.create_sandbox("process", CONFIG)

    async def _one(self, box: Sandbox) -> None:
        kinds: list[tuple[int, Callable[[Sandbox], Awaitable[None]]]] = [
            (40, exists), (5, command), (8, cell), (3, stream), (1, cancelled), (1, killed),
        ]  # fmt: skip
        weights, actions = zip(*kinds, strict=True)
        action = self.chance.choices(actions, weights)[0]
        self.done[action.__name__] += 1
        try:
            with anyio.fail_after(UNANSWERED_SECONDS):
                await action(box)
        except (AssertionError, EnclaveError, TimeoutError, OSError) as error:
            self.wrong.append(f"{action.__name__}: {type(error).__name__}: {error}")


async def exists(box: Sandbox) -> None:
    """A tool."""
    done = await box.execute_tool("file_operation", {"operation": "exists", "file_path": "/tmp"})
    assert done.status == "success", done


async def command(box: Sandbox) -> None:
    """A program."""
    assert (await box.execute_command(["echo", "1"])).stdout == "1\n"


async def cell(box: Sandbox) -> None:
    """A cell of a kernel that is there, or is made."""
    kernel = await box.kernel(ipython=False)
    assert (await kernel.run("1+1")).error is None


async def stream(box: Sandbox) -> None:
    """A file there and back in pieces."""
    data = os.urandom(100_000)
    await box.files.write("data", data)
    assert b"".join([piece async for piece in box.files.read_stream("data")]) == data


async def cancelled(box: Sandbox) -> None:
    """A program whose caller goes."""
    with anyio.move_on_after(0.05):
        await box.execute_command("sleep 600")


async def killed(box: Sandbox) -> None:
    """A program that is started, and killed."""
    started = await box.start_command("sleep 600")
    await started.kill()
    assert (await started.wait(60)).verdict is not Verdict.OK


def look(pid: int) -> dict[str, int]:
    """KiB and descriptors of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kib] = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    return {"kib": kib, "descriptors": len(os.listdir(f"/proc/{pid}/fd"))}


def is_level(looks: list[dict[str, int]]) -> bool:
    """Whether the last quarter is as the second was."""
    quarter = len(looks) // 4
    if quarter == 0:
        return False
    for name, more in (("kib", MORE_KIB), ("descriptors", MORE_DESCRIPTORS)):
        then = max(look[name] for look in looks[quarter : 2 * quarter])
        if max(look[name] for look in looks[-quarter:]) > then + more:
            return False
    return True


async def soak(url: str, pid: int, seconds: float, number: int) -> dict[str, Any]:
    """Soak a server that runs, and say what was found."""
    found = Soak(url, random.Random(number), time.monotonic() + seconds)
    looks: list[dict[str, int]] = []
    begun = time.monotonic()

    async def watch() -> None:
        while True:
            await anyio.sleep(min(60.0, seconds / 10))
            looks.append(look(pid))
            done = sum(found.done.values())
            print(f"{time.monotonic() - begun:6.0f} s {done:7d} calls {looks[-1]}", flush=True)

    async with found.manager, anyio.create_task_group() as watching:
        watching.start_soon(watch)
        async with anyio.create_task_group() as group:
            for _ in range(AT_ONCE):
                group.start_soon(found.work)
        left = [info.id for info in await found.manager.list_sandboxes()]
        watching.cancel_scope.cancel()
    return {
        "seconds": round(time.monotonic() - begun, 1), "calls": sum(found.done.values()),
        "by_kind": dict(found.done), "wrong": len(found.wrong), "first_wrong": found.wrong[:10],
        "left": left, "level": is_level(looks), "looks": looks,
    }  # fmt: skip


def main(words: list[str]) -> int:
    """Start a server, soak it, end it."""
    seconds = float(words[0]) if words else 1200.0
    number = int(words[1]) if len(words) > 1 else 13
    line = [sys.executable, "-c", "from ms_enclave.cli import run_cmd; run_cmd()", "server"]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            [*line, "--port", "0", "--log", "none"],
            stderr=said, env={**os.environ, "MS_ENCLAVE_API_KEY": KEY},
        )  # fmt: skip
        try:
            url = wait_for(said)
            result = call(soak, url, child.pid, seconds, number)
        finally:
            child.terminate()
            status = child.wait(60)
    result |= {"exit": status, "seed": number}
    print(json.dumps(result))
    good = result["level"] and not (result["wrong"] or result["left"] or status)
    return 0 if good else 1


def wait_for(said: Any) -> str:
    """The address that a server writes when it serves."""
    for _ in range(600):
        said.seek(0)
        text = said.read()
        if "serves at" in text:
            return text.split()[-1]
        time.sleep(0.1)
    raise TimeoutError("the server did not begin")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
