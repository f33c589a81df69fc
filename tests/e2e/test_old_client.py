"""The client of the package that people have installed today, against our server."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import venv
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.bench import rivals
from ms_enclave.loop import call
from tests.support.served import KEY, OnLoopback

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(400)]

HEAD = """
import asyncio, json, logging, sys
from pathlib import Path
logging.disable(logging.CRITICAL)
from ms_enclave.sandbox.manager import HttpSandboxManager
from ms_enclave.sandbox.model import *
from ms_enclave.sandbox.manager.http_manager import SandboxManagerConfig
url, key, folder = sys.argv[1:]
config = SandboxManagerConfig(base_url=url, api_key=key, timeout=120)
said = {}

async def caught(what):
    try:
        return await what
    except Exception as error:
        return [type(error).__name__, str(error)]
"""


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has the older package, and not ours."""
    ready = rivals.folder() / "older-ms-enclave" / "bin" / "python"
    if ready.exists():
        return str(ready)
    place = tmp_path_factory.mktemp("older")
    venv.create(place, symlinks=True, with_pip=False)
    words = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(place),
        "install",
        "-q",
        "ms-enclave[docker]<0.1",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"the older package cannot be installed here: {done.stderr[-300:]}")
    return str(place / "bin" / "python")


@contextmanager
def served() -> Iterator[str]:
    manager = OnLoopback()
    call(manager.start)
    try:
        yield str(manager.config.base_url)
    finally:
        call(manager.stop)


def play(python: str, url: str, folder: Path, body: str, key: str = KEY) -> Any:
    """Run async lines of the old client, which leave what they saw in `said`."""
    script = HEAD + "async def main():\n" + textwrap.indent(textwrap.dedent(body), "    ")
    script += "\nasyncio.run(main())\nprint(json.dumps(said, default=str))\n"
    words = [python, "-c", script, url, key, str(folder)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=200, check=False, cwd="/", env={}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_old_client_uses_our_server(old_python: str, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("from afar")
    with served() as url:
        said = play(
            old_python,
            url,
            tmp_path,
            """
            async with HttpSandboxManager(config=config) as manager:
                said["health"] = await manager.health_check()
                wanted = SandboxConfig(tools_config={"shell_executor": {}, "python_executor": {}})
                made = await manager.create_sandbox("process", wanted)
                info = await manager.get_sandbox_info(made)
                said["info"] = [info.id == made, info.status.value, info.type]
                said["tools_of_info"] = sorted(info.available_tools)
                said["listed"] = [one.id for one in await manager.list_sandboxes()] == [made]
                tools = await manager.get_sandbox_tools(made)
                said["tools"] = [tools[name]["type"] for name in sorted(tools)]
                said["dir"] = await manager.put_dir(made, folder, "/sandbox/in")
                done = await manager.execute_tool(
                    made, "shell_executor", {"command": "cat in/note; exit 3"})
                said["done"] = [done.status.value, done.output, "exit code 3" in done.error]
                code = {"code": "print(6 * 7)"}
                said["python"] = (await manager.execute_tool(made, "python_executor", code)).output
                said["no_tool"] = await caught(manager.execute_tool(made, "nothing", {}))
                said["no_box"] = await caught(manager.execute_tool("unknown1", "nothing", {}))
                said["no_tools"] = await caught(manager.get_sandbox_tools("unknown1"))
                said["no_info"] = await manager.get_sandbox_info("unknown1")
                said["stopped"] = await manager.stop_sandbox(made)
                said["state"] = (await manager.get_sandbox_info(made)).status.value
                said["deleted"] = [await manager.delete_sandbox(made) for _ in range(2)]
                said["no_type"] = await caught(manager.create_sandbox("no_such_type", {}))
                said["no_key"] = await caught(manager.create_sandbox("process", {"nothing": 1}))
            """,
        )
    assert said["health"]["healthy"] is True
    assert said["info"] == [True, "running", "process"]
    assert said["tools_of_info"] == ["python_executor", "shell_executor"]
    assert said["listed"] is True
    assert said["tools"] == ["function", "function"]
    assert said["dir"] is True
    assert said["done"] == ["error", "from afar", True]
    assert said["python"] == "42\n"
    assert said["no_tool"][0] == said["no_box"][0] == said["no_tools"][0] == "ValueError"
    assert "not found" in said["no_tool"][1]
    assert said["no_box"][1] == said["no_tools"][1] == "Sandbox unknown1 not found"
    assert said["no_info"] is None
    assert (said["stopped"], said["state"]) == (True, "stopped")
    assert said["deleted"] == [True, False]
    assert said["no_type"][0] == "RuntimeError"
    assert said["no_type"][1].startswith("HTTP 400: Sandbox type no_such_type is not registered")
    assert said["no_key"][1].startswith("HTTP 400: ")


def test_the_old_client_works_in_a_pool(old_python: str, tmp_path: Path) -> None:
    with served() as url:
        said = play(
            old_python,
            url,
            tmp_path,
            """
            async with HttpSandboxManager(config=config) as manager:
                wanted = SandboxConfig(tools_config={"shell_executor": {}})
                said["made"] = len(await manager.initialize_pool(2, "process", wanted))
                busy = [manager.execute_tool_in_pool("shell_executor", {"command": "sleep 3"})
                        for _ in range(2)]
                both = asyncio.gather(*busy)
                await asyncio.sleep(0.5)
                late = manager.execute_tool_in_pool("shell_executor", {"command": "true"}, 0.2)
                said["late"] = await caught(late)
                said["busy"] = [one.status.value for one in await both]
            """,
        )
    assert said["made"] == 2
    assert said["late"][0] == "TimeoutError"
    assert said["busy"] == ["success", "success"]


def test_without_the_key_the_old_client_sees_nothing(old_python: str, tmp_path: Path) -> None:
    with served() as url:
        said = play(
            old_python,
            url,
            tmp_path,
            """
            async with HttpSandboxManager(config=config) as manager:
                said["made"] = await caught(manager.create_sandbox("process", {}))
                said["listed"] = await manager.list_sandboxes()
            """,
            key="wrong",
        )
    assert said["made"][0] == "RuntimeError"
    assert said["made"][1].startswith("HTTP 401: ")
    assert said["listed"] == []


@pytest.mark.docker
def test_the_old_client_sends_its_whole_config(old_python: str, tmp_path: Path) -> None:
    """With a network and 4 GB that nobody asked for: ours decides, which is no network."""
    with served() as url:
        said = play(
            old_python,
            url,
            tmp_path,
            """
            async with HttpSandboxManager(config=config) as manager:
                wanted = DockerSandboxConfig(tools_config={"shell_executor": {}})
                made = await manager.create_sandbox(SandboxType.DOCKER, wanted)
                said["config"] = (await manager.get_sandbox_info(made)).config
                done = await manager.execute_tool(made, "shell_executor", {"command": "echo hi"})
                said["done"] = [done.status.value, done.output]
            """,
        )
    assert said["config"]["network_enabled"] is False
    assert said["done"] == ["success", "hi\n"]
