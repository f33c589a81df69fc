"""Programs that own sandboxes, each a manager in a process of its own, for tests that kill them."""

from __future__ import annotations

import json
import os
import re
import secrets
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.security.boxes import find_processes, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Self

__all__ = ["BUSY", "NURSERY", "Owner", "groups_named", "new_marker"]

_SECONDS = 30.0

PROGRAM = """
import asyncio, json, sys
from ms_enclave.manager.local_manager import LocalSandboxManager

def say(value):
    print(json.dumps(value), flush=True)

async def main(marker, count):
    async with LocalSandboxManager() as manager:
        boxes = []
        for number in range(count):
            box = await manager.get_sandbox(await manager.create_sandbox('process'))
            await box.execute_command(
                f'echo {marker} > mine; setsid sleep {marker} > /dev/null 2>&1 &')
            boxes.append(box)
        say('ready')
        loop = asyncio.get_running_loop()
        while (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            seen = [(await box.execute_command('cat mine')).stdout.strip() for box in boxes]
            fresh = await manager.run_code('print(40 + 2)')
            say([*seen, fresh.stdout.strip()])

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""

BUSY = """
import asyncio, json, os, sys
from ms_enclave.manager.local_manager import LocalSandboxManager

async def work(manager, marker):
    while True:
        name = await manager.create_sandbox('process')
        box = await manager.get_sandbox(name)
        await box.execute_command(f'setsid sleep {marker} > /dev/null 2>&1 &')
        await box.files.write('data', b'x' * 300000)
        await box.run_code('print(1)')
        await manager.run_code('print(1)')
        await manager.delete_sandbox(name)

async def main(marker, count):
    config = json.loads(os.environ.get('CONFIG', '{}'))
    async with LocalSandboxManager(sandbox_config=config) as manager:
        await manager.run_code('print(1)')
        print(json.dumps('ready'), flush=True)
        await asyncio.gather(*(work(manager, marker) for _ in range(count)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
"""Makes, uses and deletes sandboxes all the time."""

NURSERY = (
    BUSY.rpartition("asyncio.run")[0]
    + """
import os, signal
from ms_enclave.boxes.factory import SandboxFactory
SandboxFactory.get_class('process')
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who is killed leaves nothing to wait for
say_to = os.dup(1)
print(json.dumps('ready'), flush=True)
while marker := sys.stdin.readline().strip():
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open('/dev/null', os.O_RDWR), 0)
        os.dup2(2, 1)
        os.close(say_to)
        sys.stdout = open(os.devnull, 'w')
        asyncio.run(main(marker, 2))
        os._exit(1)
    print(json.dumps(pid), flush=True)
"""
)
"""Makes busy owners: one for each marker that it is told, and says its pid."""


def new_marker() -> str:
    """A word that no other process on the machine has in its command line: for `sleep`."""
    return f"600.{secrets.randbelow(10**9)}"


class Owner:
    """A process with a manager and some sandboxes, in each of which a daemon runs."""

    def __init__(
        self,
        boxes: int = 2,
        *,
        program: str = PROGRAM,
        command: Iterable[str] = (),
        arguments: Iterable[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.marker = new_marker()
        self.boxes = boxes
        words = [*(command or (sys.executable, "-c", program)), self.marker]
        words += [str(boxes)] if arguments is None else arguments
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0
        )
        self._buffer = b""

    def read(self, seconds: float = _SECONDS) -> Any:
        """The next thing that it says; AssertionError if it does not."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                assert selector.select(deadline - time.monotonic()), "the owner says nothing"
                data = self.process.stdout.read(1 << 16)
                assert data, f"the owner has ended: {self.process.wait()}"
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def rest(self) -> list[Any]:
        """All that it said and nobody has read, once it has ended."""
        assert self.process.stdout is not None
        *lines, _ = (self._buffer + (self.process.stdout.read() or b"")).split(b"\n")
        self._buffer = b""
        return [json.loads(line) for line in lines]

    def ask(self, word: str = "work") -> Any:
        """Let it use its sandboxes and a new one; gives what it says of them."""
        self.tell(word)
        return self.read()

    def tell(self, word: str) -> None:
        """Say something to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(word.encode() + b"\n")

    @property
    def daemons(self) -> list[int]:
        """Pids of its sandboxes' daemons."""
        return [pid for pid in find_processes(self.marker) if not _is_python(pid)]

    def works(self) -> bool:
        """Whether all it owns is there and does what it should."""
        expected = [*[self.marker] * self.boxes, "42"]
        return self.ask() == expected and len(self.daemons) == self.boxes

    def groups(self) -> set[str]:
        """Names of its stations' control groups."""
        found: set[str] = set()
        for pid in self.daemons:
            try:
                text = Path(f"/proc/{pid}/cgroup").read_text()
            except OSError:
                continue  # it has just ended
            found |= set(re.findall(r"/(ms-enclave-[^/\n]*)", text))
        return found

    def kill(self) -> None:
        """Kill it, as nothing that it could hear of."""
        self.process.kill()
        self.close()

    def end(self) -> int:
        """Let it end in good order; gives its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.close()

    def close(self) -> int:
        """Wait for its end."""
        status = self.process.wait(_SECONDS)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        return status

    def left(self, seconds: float) -> list[int]:
        """What of its sandboxes still lives after so long."""
        return wait_until_gone(self.marker, seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.close()


def groups_named(names: set[str]) -> set[str]:
    """Those of the control groups that still exist, in any hierarchy."""
    return {
        path for path, folders, _ in os.walk("/sys/fs/cgroup") for name in folders if name in names
    }


def _is_python(pid: int) -> bool:
    try:
        return b"python" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return True
