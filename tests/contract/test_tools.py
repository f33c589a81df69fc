"""Every tool keeps every promise of a tool, in every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ms_enclave.errors import CapabilityError
from ms_enclave.model import ExecutionStatus, Verdict
from ms_enclave.testing import ToolContract
from tests.contract.boxes import Landlock, Process, Subprocess, needs_process

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox

SOMEBODY = "2345"


async def skip_without_users(box: Sandbox) -> None:
    """Skip a test where the sandbox has only one user."""
    try:
        result = await box.execute_command(["true"], user=SOMEBODY)
    except CapabilityError as error:
        pytest.skip(str(error))
    if not result.success:
        pytest.skip(str(result.stderr))


class PythonExecutor(ToolContract):
    tool_name = "python_executor"
    works: ClassVar[dict[str, Any]] = {"code": "print(1)"}
    wrong: ClassVar[dict[str, Any]] = {"code": 5}


class ShellExecutor(ToolContract):
    tool_name = "shell_executor"
    works: ClassVar[dict[str, Any]] = {"command": "echo 1"}
    wrong: ClassVar[dict[str, Any]] = {"command": "echo 1", "timeout": "soon"}


class FileOperation(ToolContract):
    tool_name = "file_operation"
    works: ClassVar[dict[str, Any]] = {
        "operation": "write",
        "file_path": "note",
        "content": "text",
    }
    wrong: ClassVar[dict[str, Any]] = {"operation": "no_such_operation", "file_path": "note"}

    async def test_a_user_does_it_with_that_users_rights(self, fresh: Sandbox) -> None:
        await skip_without_users(fresh)
        refused = await fresh.execute_tool(self.tool_name, {**self.works, "user": SOMEBODY})
        assert (refused.status, refused.verdict) == (ExecutionStatus.ERROR, Verdict.ERROR)
        assert refused.error == "Permission denied: note"
        await fresh.execute_command(["chmod", "777", "."])
        result = await fresh.execute_tool(self.tool_name, {**self.works, "user": SOMEBODY})
        assert result.success, result.error
        shown = await fresh.execute_command(["stat", "-c", "%u", "note"])
        assert shown.stdout == f"{SOMEBODY}\n"


class MultiCodeExecutor(ToolContract):
    tool_name = "multi_code_executor"
    works: ClassVar[dict[str, Any]] = {"language": "bash", "code": "echo 1"}
    wrong: ClassVar[dict[str, Any]] = {"language": 5, "code": "echo 1"}

    async def test_what_another_user_made_is_removed(self, fresh: Sandbox) -> None:
        await skip_without_users(fresh)
        code = "mkdir -p a/b && touch a/b/c && id -u"
        parameters = {**self.works, "code": code, "user": SOMEBODY}
        result = await fresh.execute_tool(self.tool_name, parameters)
        assert result.output.strip() == SOMEBODY, result.error
        assert await fresh.files.list(".") == []


class TestPythonInSubprocess(Subprocess, PythonExecutor):
    pass


class TestShellInSubprocess(Subprocess, ShellExecutor):
    pass


class TestFilesInSubprocess(Subprocess, FileOperation):
    pass


class TestMultiCodeInSubprocess(Subprocess, MultiCodeExecutor):
    pass


@needs_process
class TestPythonInProcess(Process, PythonExecutor):
    pass


@needs_process
class TestShellInProcess(Process, ShellExecutor):
    pass


@needs_process
class TestFilesInProcess(Process, FileOperation):
    pass


@needs_process
class TestMultiCodeInProcess(Process, MultiCodeExecutor):
    pass


class TestPythonInLandlock(Landlock, PythonExecutor):
    pass


class TestShellInLandlock(Landlock, ShellExecutor):
    pass


class TestFilesInLandlock(Landlock, FileOperation):
    pass


class TestMultiCodeInLandlock(Landlock, MultiCodeExecutor):
    pass
