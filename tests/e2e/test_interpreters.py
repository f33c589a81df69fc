"""Every Python that a sandbox can be given: the 3.8 to 3.14 that are here, and environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import ConfigError
from tests.security.boxes import ColdSandbox
from tests.support.interpreters import NEWEST, OLDEST, VERSIONS, find_python

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

FACTS = """
import json, subprocess, sys
import asyncio, ctypes, hashlib, ssl, sqlite3, threading, uuid
child = subprocess.check_output([sys.executable, "-c", "import sys; print(sys.version)"])
print(json.dumps([sys.version_info[:2], sys.executable, sys.prefix, child.decode().strip()]))
"""


@pytest.fixture(params=VERSIONS, ids=lambda version: ".".join(map(str, version)))
def python(request: pytest.FixtureRequest) -> str:
    found = find_python(request.param)
    if found is None:
        pytest.skip(f"there is no Python {'.'.join(map(str, request.param))} on this machine")
    return found


def said_by(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kind", [ProcessSandbox, ColdSandbox], ids=["copied", "started"])
async def test_programs_find_themselves_as_on_the_host(
    python: str, kind: type[ProcessSandbox]
) -> None:
    async with kind({"python": python}) as box:
        assert box.isolation.guards["zygote"] == ("on" if kind is ProcessSandbox else "off")
        result = await box.run_code(FACTS)
        assert (result.stderr, result.stdout) == ("", said_by(python, FACTS))


async def test_it_is_copied_with_what_was_preloaded(python: str) -> None:
    code = "import random, sys; print('decimal' in sys.modules, random.random())"
    async with ProcessSandbox({"python": python, "preload": ["decimal"], "seed": 3}) as box:
        first, second = [(await box.run_code(code)).stdout for _ in range(2)]
        assert first == second
        assert first.startswith("True ")


async def test_errors_and_exit_codes_are_that_pythons_own(python: str) -> None:
    code = "def f():\n    return 1 / 0\nf()"
    async with ProcessSandbox({"python": python}) as box:
        result = await box.run_code(code)
        lines = result.stderr.splitlines()
        assert (result.exit_code, result.verdict) == (1, "error")
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1] == "ZeroDivisionError: division by zero"
        assert (await box.run_code("raise SystemExit(7)")).exit_code == 7
        assert (await box.run_code("while True: pass", timeout=0.3)).verdict == "wall_timeout"


async def test_its_file_server_works(python: str) -> None:
    async with ProcessSandbox({"python": python}) as box:
        await box.files.write("folder/file", b"\0\xff")
        assert await box.files.read("folder/file") == b"\0\xff"
        assert [entry.name for entry in await box.files.list("folder")] == ["file"]
        assert (await box.execute_command("wc -c folder/file")).stdout == "2 folder/file\n"


async def test_it_runs_cells(python: str) -> None:
    async def answer(prompt: str) -> str:
        return prompt * 2

    async with ProcessSandbox({"python": python}) as box:
        kernel = await box.kernel(ipython=False)
        done = await kernel.run("x = input('ab')\ndisplay(1)\nawait later()", on_input=answer)
        assert done.error is not None
        assert (done.error.name, done.displays) == ("NameError", [{"text/plain": "1"}])
        late = await kernel.run("import asyncio\nawait asyncio.sleep(60)", timeout=0.2)
        assert late.verdict == "wall_timeout"
        assert (await kernel.run("x")).result == {"text/plain": "'abab'"}


async def test_an_environment_of_it_brings_its_packages(python: str, tmp_path: Path) -> None:
    place = tmp_path / "env"
    subprocess.run([python, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = (place / "lib").glob("python3*/site-packages")
    (packages / "only_there.py").write_text("answer = 42")
    code = "import json, only_there, sys; print(json.dumps([only_there.answer, sys.prefix]))"
    async with ProcessSandbox({"python": str(place)}) as box:
        assert json.loads((await box.run_code(code)).stdout) == [42, str(place)]
        shell = await box.execute_command("python -c 'import only_there; print(1)'")
        assert (shell.stdout, shell.stderr) == ("1\n", "")


@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="no /usr/bin/python3 here")
async def test_the_distributions_own_brings_the_distributions_packages() -> None:
    code = "import sys; print(sys.executable, [path for path in sys.path if 'packages' in path])"
    async with ProcessSandbox({"python": "/usr/bin/python3"}) as box:
        assert (await box.run_code(code)).stdout == said_by("/usr/bin/python3", code)


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's sandboxes are that user's own")
@pytest.mark.parametrize("closed", ["env", "env/bin", "env/lib"])
async def test_an_environment_that_others_may_not_enter_is_said_so(
    tmp_path: Path, closed: str
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (tmp_path / closed).chmod(0o700)
    with pytest.raises(ConfigError, match=str(tmp_path / closed)) as caught:
        await ProcessSandbox({"python": str(tmp_path / "env")}).start()
    (remedy,) = [part for part in str(caught.value).split(": ") if part.startswith("chmod")]
    subprocess.run(remedy.split(), check=True)
    async with ProcessSandbox({"python": str(tmp_path / "env")}) as box:
        assert (await box.run_code("print(1)")).stdout == "1\n"


def test_the_oldest_and_the_newest_are_those_that_are_promised() -> None:
    from ms_enclave.boxes import _process_plan

    assert OLDEST == _process_plan.OLDEST
    assert sys.version_info[:2] <= NEWEST
