"""Every name, message and private view that existing code relies on, gone through.

`NOT_YET` lists what belongs to parts that have not landed. When one of them appears the test
fails until it has been moved to the names that are checked.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ms_enclave
from ms_enclave import errors, model
from ms_enclave.boxes import SandboxFactory
from ms_enclave.manager import LocalSandboxManager, SandboxManagerFactory
from ms_enclave.model import (
    DockerSandboxConfig,
    ExecutionStatus,
    SandboxManagerConfig,
    SandboxStatus,
    SandboxType,
)
from ms_enclave.tools import ToolFactory
from tests.support.subprocess_box import SubprocessSandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ms_enclave.boxes import Sandbox

ENUMS = "ExecutionStatus SandboxManagerType SandboxStatus SandboxType ToolType"
CONFIGS = (
    "DockerNotebookConfig DockerSandboxConfig FileOperationConfig PythonExecutorConfig "
    "SandboxConfig SandboxManagerConfig ShellExecutorConfig ToolConfig VolcengineSandboxConfig "
    "VolcengineSandboxManagerConfig"
)
REQUESTS = (
    "ExecuteCodeRequest ExecuteCommandRequest FileOperationRequest ReadFileRequest "
    "ToolExecutionRequest WriteFileRequest"
)
RESPONSES = "CommandResult ExecutionResult HealthCheckResult SandboxInfo ToolResult"

NAMES = {
    "ms_enclave.boxes": (
        "DockerNotebook DockerNotebookSandbox DockerSandbox Sandbox SandboxFactory "
        "StatelessSandbox VolcengineSandbox register_sandbox"
    ),
    "ms_enclave.cli": "run_cmd",
    "ms_enclave.cli.cli": "run_cmd",
    "ms_enclave.manager": (
        "HttpSandboxManager LocalSandboxManager SandboxManager SandboxManagerFactory "
        "VolcengineSandboxManager register_manager"
    ),
    "ms_enclave.manager.local_manager": "LocalSandboxManager",
    "ms_enclave.model": f"{ENUMS} {CONFIGS} {REQUESTS} {RESPONSES} ProcessSandboxConfig",
    "ms_enclave.manager.http_manager": "HttpSandboxManager",
    "ms_enclave.server": "SandboxServer create_server",
    "ms_enclave.sandbox.manager.http_manager": "HttpSandboxManager",
    "ms_enclave.sandbox.server": "SandboxServer create_server",
    "ms_enclave.sandbox.server.server": "SandboxServer create_server",
    "ms_enclave.sandbox": (
        "HttpSandboxManager SandboxServer create_server "
        "DockerSandbox DockerSandboxConfig ExecuteCodeRequest ExecuteCommandRequest "
        "ExecutionStatus "
        "HealthCheckResult LocalSandboxManager PythonExecutor ReadFileRequest Sandbox "
        "SandboxConfig SandboxFactory SandboxInfo SandboxStatus Tool ToolExecutionRequest "
        "ToolFactory ToolResult WriteFileRequest"
    ),
    "ms_enclave.sandbox.boxes": (
        "DockerNotebook DockerNotebookSandbox DockerSandbox Sandbox SandboxFactory "
        "StatelessSandbox VolcengineSandbox register_sandbox"
    ),
    "ms_enclave.sandbox.boxes.stateless_sandbox": "StatelessSandbox",
    "ms_enclave.sandbox.boxes.volcengine": "VolcengineSandbox",
    "ms_enclave.sandbox.boxes.docker_notebook": "DockerNotebook DockerNotebookSandbox",
    "ms_enclave.sandbox.boxes.docker_sandbox": "DockerSandbox",
    "ms_enclave.sandbox.boxes.base": "Sandbox SandboxFactory register_sandbox",
    "ms_enclave.sandbox.manager": (
        "HttpSandboxManager LocalSandboxManager SandboxManager SandboxManagerFactory "
        "VolcengineSandboxManager"
    ),
    "ms_enclave.sandbox.manager.volcengine": "VolcengineSandboxManager",
    "ms_enclave.sandbox.manager.base": "SandboxManager SandboxManagerFactory register_manager",
    "ms_enclave.sandbox.manager.local_manager": "LocalSandboxManager",
    "ms_enclave.sandbox.model": f"{ENUMS} {CONFIGS} {REQUESTS} {RESPONSES}",
    "ms_enclave.sandbox.model.base": ENUMS,
    "ms_enclave.sandbox.model.config": CONFIGS,
    "ms_enclave.sandbox.model.constants": "DEFAULT_POOL_EXECUTION_TIMEOUT",
    "ms_enclave.sandbox.model.requests": REQUESTS,
    "ms_enclave.sandbox.model.responses": RESPONSES,
    "ms_enclave.sandbox.tools": (
        "FileOperation PythonExecutor ShellExecutor Tool ToolFactory register_tool"
    ),
    "ms_enclave.sandbox.tools.base": "Tool ToolFactory register_tool",
    "ms_enclave.sandbox.tools.sandbox_tool": "SandboxTool",
    "ms_enclave.sandbox.tools.sandbox_tools": (
        "FileOperation MultiCodeExecutor NotebookExecutor PythonExecutor ShellExecutor"
    ),
    "ms_enclave.sandbox.tools.tool_info": (
        "ToolInfo ToolParam ToolParams parse_docstring parse_tool_info"
    ),
    "ms_enclave.sandbox.utils.archive": "tar_directory tar_file",
    "ms_enclave.tools": "NotebookExecutor Tool ToolFactory register_tool",
    "ms_enclave.utils": "get_logger",
    "ms_enclave.utils.archive": "tar_directory tar_file",
    "ms_enclave.utils.json_schema": (
        "JSONSchema cls_json_schema json_schema python_type_to_json_type resolve_schema_references"
    ),
}


def _pairs(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(module, name) for module, names in table.items() for name in names.split()]


# --- names ---


@pytest.mark.parametrize(("module", "name"), _pairs(NAMES))
def test_a_name_is_where_it_is_looked_for(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


OTHER_SPELLING = [row for row in _pairs(NAMES) if row[0].startswith("ms_enclave.sandbox")]


@pytest.mark.parametrize(("module", "name"), OTHER_SPELLING)
def test_both_spellings_are_the_same_object(module: str, name: str) -> None:
    found = getattr(importlib.import_module(module), name)
    home = found.__module__ if hasattr(found, "__module__") else "ms_enclave.model"
    assert not home.startswith("ms_enclave.sandbox.")
    assert getattr(importlib.import_module(home), getattr(found, "__name__", name)) is found


def test_every_public_name_of_the_package_resolves() -> None:
    for name in ms_enclave.__all__:
        assert getattr(ms_enclave, name) is not None
    assert set(ms_enclave.__all__) <= set(dir(ms_enclave))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ms_enclave.no_such_name  # type: ignore[attr-defined]


def test_the_package_has_every_name_of_the_data_and_the_errors() -> None:
    data = {name for name in model.__all__ if not name.startswith("DEFAULT_")}
    assert (data | set(errors.__all__)) <= set(ms_enclave.__all__)


def test_the_other_tree_is_up_to_date() -> None:
    script = Path(__file__).parents[2] / "scripts" / "generate_sandbox_tree.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- values ---


def test_values_are_the_known_ones() -> None:
    assert {kind.value for kind in SandboxType} >= {
        "docker",
        "docker_notebook",
        "volcengine",
        "dummy",
        "process",
    }
    assert [kind.value for kind in model.SandboxManagerType] == ["local", "http", "volcengine"]
    assert [each.value for each in ExecutionStatus] == ["success", "error", "timeout", "cancelled"]
    assert [each.name for each in SandboxStatus] == [
        "CREATED",
        "STARTING",
        "RUNNING",
        "STOPPING",
        "STOPPED",
        "ERROR",
    ]
    assert (
        importlib.import_module("ms_enclave.sandbox.model.constants").__dict__[
            "DEFAULT_POOL_EXECUTION_TIMEOUT"
        ]
        == 3600
    )


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            "ToolResult",
            "tool_name status output error metadata execution_time timestamp exit_code stdout "
            "stderr truncated verdict signal usage isolation",
        ),
        (
            "CommandResult",
            "command status exit_code stdout stderr truncated execution_time timestamp verdict "
            "signal usage isolation",
        ),
        ("SandboxInfo", "id status type config created_at updated_at metadata available_tools"),
        ("HealthCheckResult", "healthy version uptime active_sandboxes system_info"),
        ("ToolExecutionRequest", "sandbox_id tool_name parameters timeout"),
        ("SandboxConfig", "timeout tools_config working_dir env_vars resource_limits"),
        (
            "DockerSandboxConfig",
            "image command volumes ports network network_enabled extra_hosts platform "
            "memory_limit cpu_limit privileged entrypoint remove_on_exit",
        ),
        ("DockerNotebookConfig", "host port token"),
        (
            "SandboxManagerConfig",
            "base_url timeout api_key cleanup_interval pool_size sandbox_config",
        ),
        (
            "VolcengineSandboxConfig",
            "base_url run_code_path request_timeout verify_ssl extra_headers api_key "
            "dataset_language_map tool_language_map max_concurrency",
        ),
    ],
)
def test_a_model_has_its_known_fields(kind: str, fields: str) -> None:
    assert set(fields.split()) <= set(getattr(model, kind).model_fields)


# --- messages that are matched ---


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: SandboxFactory.create_sandbox("warp"),
            ValueError,
            r"Sandbox type warp is not registered",
        ),
        (
            lambda: ToolFactory.create_tool("warp"),
            ValueError,
            r"Tool name warp is not registered",
        ),
        (
            lambda: SandboxManagerFactory.create_manager("warp"),
            ValueError,
            r"Sandbox manager type 'warp' not registered. Available types: \['local'",
        ),
        (
            lambda: DockerSandboxConfig(memory_limit="plenty"),
            ValueError,
            r"Invalid memory limit format",
        ),
        (lambda: DockerSandboxConfig(cpu_limit=0), ValueError, r"CPU limit must be positive"),
        (lambda: DockerSandboxConfig(cpu_limit=-1.5), ValueError, r"CPU limit must be positive"),
        (
            lambda: SandboxManagerConfig(cleanup_interval=0),
            ValueError,
            r"Cleanup interval must be positive or None",
        ),
        (
            lambda: SandboxManagerConfig(pool_size=-1),
            ValueError,
            r"Pool size must be non-negative",
        ),
        (
            lambda: LocalSandboxManager(pool_size=-1),
            ValueError,
            r"Pool size must be non-negative",
        ),
    ],
)
def test_a_message_has_the_words_that_callers_match(
    call: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_messages_of_the_pool_have_the_words_that_callers_match() -> None:
    empty = str(errors.PoolEmptyError())
    assert empty == "Sandbox pool is empty, call initialize_pool first"
    late = errors.PoolTimeoutError(2.5)
    assert str(late) == "Timeout waiting for available sandbox from pool after 2.5s"
    assert isinstance(late, TimeoutError)


# --- private views that are read ---


async def test_private_views_of_a_manager_can_be_read_and_replaced() -> None:
    manager = LocalSandboxManager()
    assert manager._sandboxes == {}
    assert list(manager._sandbox_pool) == []
    assert manager._pool_initialized is False
    assert manager._running is False
    async with manager._pool_condition:
        pass
    stand_in: Any = {"x": object()}
    manager._sandboxes = stand_in
    assert manager._sandboxes is stand_in


def test_private_views_of_a_sandbox_can_be_read() -> None:
    box = SandboxFactory.create_sandbox("process")
    assert box.client is None
    assert box.container is None
    assert len(box.id) == 8
    assert set(box.id) <= set("23456789abcdefghijkmnopqrstuvwxyz")


# --- messages of a running sandbox ---


@pytest.fixture
async def box() -> AsyncIterator[Sandbox]:
    tools = ["python_executor", "shell_executor", "file_operation"]
    async with SubprocessSandbox({"tools_config": tools}) as sandbox:
        yield sandbox


async def test_messages_of_commands_have_the_words_that_callers_match(box: Sandbox) -> None:
    late = await box.execute_command(["sleep", "60"], timeout=0.5)
    assert (late.status, late.exit_code) == ("timeout", -1)
    assert late.error == "Command timed out after 0.5 seconds"
    failed = await box.execute_tool("shell_executor", {"command": ["sh", "-c", "exit 5"]})
    assert failed.status == "error"
    assert "Command failed with exit code 5" in (failed.error or "")
    with pytest.raises(ValueError, match="No command provided"):
        await box.execute_command("")


async def test_messages_of_tools_have_the_words_that_callers_match(box: Sandbox) -> None:
    path = f"{box.config.working_dir}/a"
    for tool, parameters, message in [
        ("python_executor", {"code": ""}, "No code provided"),
        ("shell_executor", {"command": ""}, "No command provided"),
        ("file_operation", {"operation": "paint", "file_path": path}, "Unknown operation: paint"),
    ]:
        result = await box.execute_tool(tool, parameters)
        assert (result.status, result.error) == ("error", message)
    written = await box.execute_tool(
        "file_operation", {"operation": "write", "file_path": path, "content": "x"}
    )
    assert written.output == f"File written successfully: {path}"


async def test_messages_of_transfers_have_the_words_that_callers_match(
    box: Sandbox, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ValueError, match=f"put_dir source is not a directory: {nowhere}"):
        await box.put_dir(str(nowhere), "/x")
    with pytest.raises(ValueError, match="file_path must be an absolute path: x"):
        await box.put_file("x", "content")
