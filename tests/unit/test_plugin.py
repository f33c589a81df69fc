"""Another package adds a sandbox type, a tool and a manager, without a change here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fixtures" / "plugin"

USE_ALL_THREE = """
import asyncio, json
from ms_enclave import SandboxFactory, SandboxManagerFactory, ToolFactory

async def main():
    manager = SandboxManagerFactory.create_manager("counting", cleanup_interval=60)
    async with manager:
        config = {"prefix": "> ", "tools_config": ["shout"]}
        sandbox_id = await manager.create_sandbox("echo", config)
        result = await manager.execute_tool(sandbox_id, "shout", {"text": "hello"})
        wrong = await manager.execute_tool(sandbox_id, "shout", {})
        tools = await manager.get_sandbox_tools(sandbox_id)
        info = await manager.get_sandbox_info(sandbox_id)
    return {
        "output": result.output,
        "wrong": wrong.verdict,
        "schema": tools["shout"]["function"]["name"],
        "type": info.type,
        "made": manager.made,
        "manager": type(manager).__module__,
        "sandboxes": SandboxFactory.get_available_types(),
        "tools": ToolFactory.get_available_tools(),
        "managers": SandboxManagerFactory.get_registered_types(),
    }

print(json.dumps(asyncio.run(main())))
"""

ITS_FAULTS = """
from ms_enclave import SandboxFactory, ToolFactory
from ms_enclave.errors import ConfigError

print(type(ToolFactory.create_tool("python_executor")).__module__)
try:
    SandboxFactory.create_sandbox("broken")
except ConfigError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed in it, as an installer does it, from its sources."""
    target = tmp_path_factory.mktemp("installed")
    installer = Path(sys.executable).with_name("uv")
    command = (
        [str(installer), "pip", "install", "--offline", "--python", sys.executable]
        if installer.exists()
        else [sys.executable, "-m", "pip", "install", "--no-index", "--disable-pip-version-check"]
    )
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(target)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        [*command, *options, str(PACKAGE)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, "UV_NO_CACHE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return target


def run(program: str, installed: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_adds_a_sandbox_a_tool_and_a_manager(installed: Path) -> None:
    said = json.loads(run(USE_ALL_THREE, installed))
    assert said["output"] == "> HELLO"
    assert said["wrong"] == "invalid_parameters"
    assert said["schema"] == "shout"
    assert said["type"] == "echo"
    assert said["made"] == 1
    assert said["manager"] == "enclave_plugin.manager"
    assert {"process", "echo", "broken"} <= set(said["sandboxes"])
    assert "shout" in said["tools"]
    assert {"local", "counting"} <= set(said["managers"])


def test_a_package_can_neither_replace_what_is_ours_nor_break_it(installed: Path) -> None:
    first, second = run(ITS_FAULTS, installed).splitlines()
    assert first == "ms_enclave.tools.python_executor"
    assert "Sandbox type broken of package enclave-plugin cannot be loaded" in second


def test_nothing_of_it_is_there_without_the_package() -> None:
    program = "from ms_enclave import SandboxFactory as F; print(F.get_available_types())"
    assert "echo" not in run(program, Path())
