"""What starts the kernels of notebooks, run as it is in a container, and ipykernel's own client."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import write_connection_file

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

LAUNCHER = str(files("ms_enclave.boxes.notebook").joinpath("kernel_launcher.py"))
BOUND = 60.0
SEED = 2**40 + 5


@pytest.fixture
async def client(tmp_path: Path) -> AsyncGenerator[AsyncKernelClient]:
    """To a kernel that has a seed, and numpy loaded."""
    path, _ = write_connection_file(str(tmp_path / "connection.json"))
    facts = json.dumps({"preload": ["numpy"], "seed": SEED, "most": 1 << 20})
    kernel = subprocess.Popen([sys.executable, LAUNCHER, path, facts], cwd=tmp_path)
    client = AsyncKernelClient(connection_file=path)
    client.load_connection_file()
    client.start_channels(iopub=False, stdin=False, hb=False)
    try:
        yield client
    finally:
        client.stop_channels()
        client.context.term()
        kernel.kill()
        kernel.wait()


async def evaluate(client: AsyncKernelClient, code: str, **expressions: str) -> dict[str, Any]:
    reply: Any = await client.execute(code, user_expressions=expressions, reply=True, timeout=BOUND)
    found = reply["content"]["user_expressions"]
    return {name: found[name]["data"]["text/plain"] for name in expressions}


async def test_random_numbers_start_at_the_seed_however_often_the_kernel_is_asked_who_it_is(
    client: AsyncKernelClient,
) -> None:
    """A gateway asks again for as long as a kernel has not answered."""
    for _ in range(3):
        await client.kernel_info(reply=True, timeout=BOUND)
    code = "import random, numpy; drawn = random.random(), float(numpy.random.random())"
    expected = random.Random(SEED).random(), float(np.random.RandomState(SEED % 2**32).random())
    assert await evaluate(client, code, drawn="drawn") == {"drawn": repr(expected)}
    await evaluate(client, "random.seed(7)")
    await client.kernel_info(reply=True, timeout=BOUND)
    drawn = await evaluate(client, "drawn = random.random()", drawn="drawn")
    assert drawn == {"drawn": repr(random.Random(7).random())}
