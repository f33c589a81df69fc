"""A server that runs on, a shell that keeps its folder, and a program that wants a terminal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ms_enclave.manager.local_manager import LocalSandboxManager

if TYPE_CHECKING:
    from ms_enclave import Sandbox


async def server(sandbox: Sandbox) -> None:
    """Started, forgotten, found again by its name; read from where the last reader stopped."""
    await sandbox.start_command("python3 -u -m http.server 8000 --bind 127.0.0.1", tag="server")

    (info,) = [info for info in await sandbox.list_commands() if info.tag == "server"]
    command = await sandbox.get_command(info.id)
    first = await command.read(wait=10)
    print(first.data.decode().split(" (")[0])

    fetch = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000').read()"
    await sandbox.run_code(fetch)
    later = await command.read(after=first.cursor, wait=10)
    print(later.data.decode().partition('"')[2].partition('"')[0])

    await command.send_signal("INT")
    print("server ended:", (await command.wait(timeout=10)).exit_code is not None)


async def shell(sandbox: Sandbox) -> None:
    """What one line changes, the next one finds; a line that hangs costs its time only."""
    shell = await sandbox.shell()
    await shell.run("mkdir -p project && cd project && greet() { echo hello $1; }")
    print((await shell.run("greet from-$(basename $PWD)")).stdout, end="")
    print((await shell.run("sleep 600", timeout=0.5)).verdict.value)
    print((await shell.run("greet again")).stdout, end="")


async def terminal(sandbox: Sandbox) -> None:
    """A program that looks whether somebody is there: in a terminal it asks."""
    program = "import sys; print(sys.stdin.isatty()); print('hello', input('name? '))"
    command = await sandbox.start_command(["python3", "-c", program], pty=(24, 80))
    shown = ""
    async for event in command.events():
        shown += event.data.decode()
        if shown.endswith("name? "):
            await command.write("world\n")
    print(shown.replace("\r", ""), end="")


async def main() -> None:
    """All three in one sandbox."""
    async with LocalSandboxManager() as manager, manager.sandbox("process") as sandbox:
        await server(sandbox)
        await shell(sandbox)
        await terminal(sandbox)


if __name__ == "__main__":
    asyncio.run(main())
