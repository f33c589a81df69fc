"""`python _worker.py COUNT`: a manager that runs that many programs, one after the other, and ends.

So that all its processor time, and that of everything below it, can be taken when it has ended.
"""

from __future__ import annotations

import asyncio
import sys

from ms_enclave.manager.local_manager import LocalSandboxManager

__all__: list[str] = []


async def main(count: int) -> None:
    """Raises RuntimeError where a program does not print what it should."""
    async with LocalSandboxManager() as manager:
        for _ in range(count):
            result = await manager.run_code("print(1)")
            if result.stdout != "1\n":
                raise RuntimeError(f"a sandboxed program ended so: {result}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
