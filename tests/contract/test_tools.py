"""Every tool keeps every promise of a tool, in every backend."""

from __future__ import annotations

from typing import Any, ClassVar

from ms_enclave.testing import ToolContract
from tests.contract.boxes import Process, Subprocess, needs_process


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


class MultiCodeExecutor(ToolContract):
    tool_name = "multi_code_executor"
    works: ClassVar[dict[str, Any]] = {"language": "bash", "code": "echo 1"}
    wrong: ClassVar[dict[str, Any]] = {"language": 5, "code": "echo 1"}


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
