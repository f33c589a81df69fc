"""The three lines that most people need, then a sandbox that lives longer than one program."""

from __future__ import annotations

import asyncio

import ms_enclave.blocking
from ms_enclave.manager.local_manager import LocalSandboxManager


def one_program() -> None:
    """Ordinary code: run a program, look at what came of it."""
    result = ms_enclave.blocking.run("print(sum(range(10)))", timeout=5)
    print(result.stdout, end="")

    result = ms_enclave.blocking.run("while True: pass", timeout=1)
    print(result.verdict.value)


async def one_sandbox() -> None:
    """Async code: files and several programs in one sandbox, which is gone after the block."""
    async with LocalSandboxManager() as manager, manager.sandbox() as sandbox:
        await sandbox.files.write("numbers.txt", "3\n4\n")
        result = await sandbox.run_code("print(sum(map(int, open('numbers.txt'))))")
        print(result.stdout, end="")

        result = await sandbox.execute_command(["sh", "-c", "echo gone wrong >&2; exit 3"])
        print(result.exit_code, result.stderr, end="")


if __name__ == "__main__":
    one_program()
    asyncio.run(one_sandbox())
