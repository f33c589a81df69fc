"""Every tool keeps every promise of a tool, in every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ms_enclave.errors import CapabilityError
from ms_enclave.model import ExecutionStatus, Verdict
from ms_enclave.testing import ToolContract
from tests.contract.boxes import (
    Docker,
    DockerNotebook,
    DockerWithoutPython,
    Landlock,
    Process,
    Subprocess,
    needs_engine,
    needs_process,
)
from tests.support.served import OverHttp

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


class BackgroundCommand(ToolContract):
    tool_name = "background_command"
    works: ClassVar[dict[str, Any]] = {"operation": "start", "command": "echo 1"}
    wrong: ClassVar[dict[str, Any]] = {"operation": "start", "command": "echo 1", "wait": "long"}

    async def test_one_is_started_read_and_stopped(self, fresh: Sandbox) -> None:
        async def do(operation: str, **more: Any) -> Any:
            return await fresh.execute_tool(self.tool_name, {"operation": operation, **more})

        started = await do("start", command="echo up; sleep 600", tag="server")
        name = started.metadata["id"]
        assert started.stdout == "up\n"
        assert started.output == f"Command {name} is running; read on with after=3\nup\n"
        read = await do("read", id=name, after=3)
        assert (read.stdout, read.metadata["cursor"], read.metadata["running"]) == ("", 3, True)
        assert (await do("list")).output == (
            f"1 running, 0 ended\n{name} [server] running, 3 bytes: echo up; sleep 600\n"
        )
        stopped = await do("stop", id=name)
        assert stopped.output == f"Stopped: Command {name} has ended with exit code 137"
        assert stopped.exit_code == 137
        again = await do("stop", id=name)
        assert again.output.startswith("It had ended already")

    async def test_output_is_read_by_range_and_by_pattern(self, fresh: Sandbox) -> None:
        line = "for i in 1 2 3 4 5; do echo line $i; echo other >&2; done; exit 4"
        started = await fresh.execute_tool(
            self.tool_name, {"operation": "start", "command": line, "wait": 10}
        )
        name = started.metadata["id"]
        await (await fresh.get_command(name)).wait(10)

        async def read(**more: Any) -> Any:
            more = {"operation": "read", "id": name, **more}
            return await fresh.execute_tool(self.tool_name, more)

        part = await read(after=5, max_bytes=3)
        assert (len(part.stdout), part.metadata["cursor"], part.metadata["eof"]) == (3, 8, False)
        found = await read(pattern="line [24]$")
        assert [row.partition(":")[2] for row in found.stdout.splitlines()] == ["line 2", "line 4"]
        assert found.metadata["matches"] == 2
        assert "has ended with exit code 4" in found.output
        assert (await read(pattern="nowhere")).metadata["matches"] == 0
        wrong = await read(pattern="(")
        assert wrong.verdict == Verdict.INVALID_PARAMETERS
        costly = await read(pattern=r"(x+x+)+y")
        assert costly.success

    async def test_it_is_given_input(self, fresh: Sandbox) -> None:
        started = await fresh.execute_tool(
            self.tool_name,
            {"operation": "start", "command": ["cat"], "stdin": True, "wait": 0},
        )
        name = started.metadata["id"]
        typed = await fresh.execute_tool(
            self.tool_name, {"operation": "write", "id": name, "text": "hello\n", "wait": 10,
                             "after": 0},
        )  # fmt: skip
        assert typed.stdout == "hello\n"
        deaf = await fresh.execute_tool(self.tool_name, self.works)
        refused = await fresh.execute_tool(
            self.tool_name, {"operation": "write", "id": deaf.metadata["id"], "text": "x"}
        )
        assert refused.verdict == Verdict.INVALID_PARAMETERS
        assert "stdin=true" in (refused.error or "")

    @pytest.mark.parametrize(
        ("parameters", "said"),
        [
            ({"operation": "read", "id": "nosuch"}, "`list` shows"),
            ({"operation": "stop", "id": "nosuch"}, "`list` shows"),
            ({"operation": "read"}, "Id is required"),
            ({"operation": "start"}, "Command is required"),
            ({"operation": "start", "command": " "}, "No command"),
            ({"operation": "write", "id": "nosuch", "text": "x"}, "`list` shows"),
            ({"operation": "no_such_operation"}, "operation"),
            ({"operation": "list", "wait": 1e9}, "wait"),
        ],
    )
    async def test_what_makes_no_sense_is_said(
        self, box: Sandbox, parameters: dict[str, Any], said: str
    ) -> None:
        result = await box.execute_tool(self.tool_name, parameters)
        assert result.verdict == Verdict.INVALID_PARAMETERS
        assert said in (result.error or "")


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
    makes: ClassVar[str] = "mkdir -p a/b && touch a/b/c && id -u"

    async def test_what_another_user_made_is_removed(self, fresh: Sandbox) -> None:
        await skip_without_users(fresh)
        parameters = {**self.works, "code": self.makes, "user": SOMEBODY}
        result = await fresh.execute_tool(self.tool_name, parameters)
        assert result.output.strip() == SOMEBODY, result.error
        assert await fresh.files.list(".") == []


class TestPythonInSubprocess(Subprocess, PythonExecutor):
    pass


class TestShellInSubprocess(Subprocess, ShellExecutor):
    pass


class TestBackgroundInSubprocess(Subprocess, BackgroundCommand):
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
class TestBackgroundInProcess(Process, BackgroundCommand):
    pass


@needs_process
class TestFilesInProcess(Process, FileOperation):
    pass


@needs_process
class TestMultiCodeInProcess(Process, MultiCodeExecutor):
    pass


@needs_process
class TestPythonOverHttp(OverHttp, Process, PythonExecutor):
    pass


@needs_process
class TestShellOverHttp(OverHttp, Process, ShellExecutor):
    pass


@needs_process
class TestBackgroundOverHttp(OverHttp, Process, BackgroundCommand):
    pass


@needs_process
class TestFilesOverHttp(OverHttp, Process, FileOperation):
    pass


@needs_process
class TestMultiCodeOverHttp(OverHttp, Process, MultiCodeExecutor):
    pass


class TestPythonInLandlock(Landlock, PythonExecutor):
    pass


class TestShellInLandlock(Landlock, ShellExecutor):
    pass


class TestBackgroundInLandlock(Landlock, BackgroundCommand):
    pass


class TestFilesInLandlock(Landlock, FileOperation):
    pass


class TestMultiCodeInLandlock(Landlock, MultiCodeExecutor):
    pass


@needs_engine
class TestPythonInDocker(Docker, PythonExecutor):
    pass


@needs_engine
class TestShellInDocker(Docker, ShellExecutor):
    pass


@needs_engine
class TestBackgroundInDocker(Docker, BackgroundCommand):
    pass


@needs_engine
class TestFilesInDocker(Docker, FileOperation):
    pass


@needs_engine
class TestMultiCodeInDocker(Docker, MultiCodeExecutor):
    pass


@needs_engine
class TestPythonWithoutPython(DockerWithoutPython, PythonExecutor):
    pass


@needs_engine
class TestShellWithoutPython(DockerWithoutPython, ShellExecutor):
    pass


@needs_engine
class TestBackgroundWithoutPython(DockerWithoutPython, BackgroundCommand):
    pass


@needs_engine
class TestFilesWithoutPython(DockerWithoutPython, FileOperation):
    pass


@needs_engine
class TestMultiCodeWithoutPython(DockerWithoutPython, MultiCodeExecutor):
    """Of the languages it has only the one that was brought along."""

    works: ClassVar[dict[str, Any]] = {"language": "python", "code": "print(1)"}
    makes: ClassVar[str] = (
        "import os; os.makedirs('a/b'); open('a/b/c', 'w').close(); print(os.getuid())"
    )


@needs_engine
class TestPythonInNotebook(DockerNotebook, PythonExecutor):
    pass


@needs_engine
class TestShellInNotebook(DockerNotebook, ShellExecutor):
    pass


@needs_engine
class TestBackgroundInNotebook(DockerNotebook, BackgroundCommand):
    pass


@needs_engine
class TestFilesInNotebook(DockerNotebook, FileOperation):
    pass


@needs_engine
class TestMultiCodeInNotebook(DockerNotebook, MultiCodeExecutor):
    pass
