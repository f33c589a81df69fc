"""Kills a server that has many sandboxes, starts the next, and times how long it takes until all of
them have answered with what they had: `python -m tests.support.restart_server [BOXES] [CONTAINERS]`
prints it as JSON. Containers need the image python:3.11-slim.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from ms_enclave.manager import HttpSandboxManager, LocalSandboxManager
from tests.e2e.test_server_restart import Server, fill, has_all, key_of

__all__ = ["main"]

AT_ONCE = 4


async def main(boxes: int, containers: int) -> dict[str, Any]:
    kinds = {f"box{n}": "process" for n in range(boxes)}
    kinds |= {f"container{n}": "docker" for n in range(containers)}
    made: dict[str, str] = {}
    answered: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = await key_of(folder, "mine")
        try:
            with Server(folder) as server:
                async with HttpSandboxManager(base_url=server.address, api_key=key) as manager:
                    turns = anyio.Semaphore(AT_ONCE)

                    async def make(name: str, kind: str) -> None:
                        async with turns:
                            made[name] = await fill(manager, kind, name, name)

                    async with anyio.create_task_group() as group:
                        for each, kind in kinds.items():
                            group.start_soon(make, each, kind)
                began = time.monotonic()
                server.end(signal.SIGKILL)
            with await anyio.to_thread.run_sync(Server, folder) as server:
                serving = time.monotonic() - began
                async with HttpSandboxManager(base_url=server.address, api_key=key) as manager:

                    async def ask(name: str) -> None:
                        await has_all(manager, name, 1, made[name], name)
                        answered[name] = time.monotonic() - began

                    async with anyio.create_task_group() as group:
                        for each in kinds:
                            group.start_soon(ask, each)
                    listed = len(await manager.list_sandboxes())
                    for each in kinds:
                        await manager.delete_sandbox(each)
                server.end(signal.SIGTERM)
        finally:
            for place in (folder / "store.db.sandboxes" / "tenants").glob("*"):
                async with LocalSandboxManager(state_dir=str(place)):
                    pass
    return {
        "boxes": boxes,
        "containers": containers,
        "listed": listed,
        "serving_after_s": round(serving, 2),
        "all_boxes_after_s": round(
            max((answered[n] for n, kind in kinds.items() if kind == "process"), default=0), 2
        ),
        "all_after_s": round(max(answered.values()), 2),
    }


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    boxes, containers = words + [50, 50][len(words) :]
    print(json.dumps(anyio.run(main, boxes, containers)))
