"""A tree search over a live kernel: every branch goes on from where its parent is, by a fork.

The game: from 1 to 31 by doubling, adding 3 and taking 1 away. Whatever a step costs, and whatever
it leaves in memory and in files, is done once; the best few of each generation are branched.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ms_enclave.manager import LocalSandboxManager

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox

GOAL, WIDTH, DEPTH = 31, 2, 7
MOVES = {"double": "number *= 2", "add": "number += 3", "less": "number -= 1"}
BEGIN = "number = 1\npath = []\nopen('log', 'w').write('1')"
STEP = "{code}\npath.append({name!r})\nopen('log', 'a').write(f' {{number}}')"
SCORE = f"-abs(number - {GOAL})"


@dataclass
class Node:
    """A branch: its sandbox, how good it is, and what became of it."""

    name: str
    sandbox: Sandbox
    score: int = -GOAL
    below: list[Node] = field(default_factory=list["Node"])
    kept: bool = False


async def evaluate(sandbox: Sandbox, code: str) -> str:
    """What the last expression of a cell gives in a sandbox's kernel."""
    kernel = await sandbox.kernel()
    done = await kernel.run(code)
    return done.result["text/plain"] if done.result else ""


async def branch(node: Node) -> None:
    """Try every move from a node, each in a fork of it."""
    for (name, code), fork in zip(MOVES.items(), await node.sandbox.fork(len(MOVES)), strict=True):
        await evaluate(fork, STEP.format(code=code, name=name))
        node.below.append(Node(name, fork, int(await evaluate(fork, SCORE))))


async def search(root: Node) -> Node:
    """Branch the best of each generation until one is there."""
    best = [root]
    for _ in range(DEPTH):
        for node in best:
            await branch(node)
        children = [child for node in best for child in node.below]
        best = sorted(children, key=lambda child: child.score, reverse=True)[:WIDTH]
        for child in children:
            child.kept = child in best
            if not child.kept:
                await child.sandbox.stop()
        if best[0].score == 0:
            break
    return best[0]


def show(node: Node, indent: str = "") -> None:
    """The tree, with the branches that were followed marked."""
    print(f"{indent}{'* ' if node.kept else '  '}{node.name} ({node.score})")
    for child in node.below:
        show(child, f"{indent}  ")


async def main() -> None:
    """Search, and show what was tried."""
    async with LocalSandboxManager() as manager, manager.sandbox("process") as sandbox:
        await evaluate(sandbox, BEGIN)
        root = Node("begin", sandbox, kept=True)
        found = await search(root)
        show(root)
        print("path:", await evaluate(found.sandbox, "' '.join(path)"))
        print("log:", (await found.sandbox.files.read("log")).decode())


if __name__ == "__main__":
    asyncio.run(main())
