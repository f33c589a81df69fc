"""A web server in a sandbox that has no network, reached from outside; and a watch of its files."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ms_enclave import LocalSandboxManager, PortRefusedError

if TYPE_CHECKING:
    from ms_enclave.boxes import PortStream, Sandbox

SERVER = ["python3", "-m", "http.server", "--bind", "127.0.0.1", "8000"]


async def connected(sandbox: Sandbox, port: int) -> PortStream:
    """A connection, as soon as the server takes one."""
    while True:
        try:
            return await sandbox.connect(port)
        except PortRefusedError:
            await asyncio.sleep(0.02)


async def fetch(sandbox: Sandbox, path: str) -> bytes:
    """One page, by hand: a connection is a plain byte stream."""
    async with await connected(sandbox, 8000) as stream:
        await stream.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join([piece async for piece in stream])
    return answer.partition(b"\r\n\r\n")[2]


async def main() -> None:
    """Serve a page, change it when a program inside has, and move a large file."""
    async with LocalSandboxManager() as manager, manager.sandbox("process") as sandbox:
        await sandbox.files.write("page.html", "<h1>first</h1>\n")
        await sandbox.start_command(SERVER)
        print((await fetch(sandbox, "/page.html")).decode(), end="")
        print([(port.port, port.address) for port in await sandbox.list_ports()])

        async for event in sandbox.files.watch("."):
            if event.type == "watching":
                await sandbox.execute_command("echo '<h1>second</h1>' > new; mv new page.html")
            elif (event.type, event.path) == ("created", "page.html"):
                print((await fetch(sandbox, "/page.html")).decode(), end="")
                break

        await sandbox.execute_command("head -c 64M /dev/zero > big")
        size = 0
        async for piece in sandbox.files.read_stream("big"):
            size += len(piece)
        print(f"{size >> 20} MiB")


if __name__ == "__main__":
    asyncio.run(main())
