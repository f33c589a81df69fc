"""What the built-in tools say, over a real guest without walls."""

from __future__ import annotations

import base64
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.boxes import Sandbox, SandboxFactory
from ms_enclave.errors import CapabilityError, ConfigError
from ms_enclave.loop import call
from ms_enclave.model import CommandResult, ExecutionStatus, ToolResult, Verdict
from ms_enclave.tools import FileOperation, MultiCodeExecutor, PythonExecutor, ShellExecutor
from ms_enclave.tools._results import error_text, from_command
from tests.support import subprocess_box

if TYPE_CHECKING:
    from collections.abc import Iterator

subprocess_box.install()


class WithoutKernels(subprocess_box.SubprocessSandbox):
    """A type of sandbox that has none."""

    async def _open(self, stack: AsyncExitStack) -> None:
        await super()._open(stack)
        self._capabilities -= {"kernel"}


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    stack = AsyncExitStack()
    opened = SandboxFactory.create_sandbox("subprocess")
    call(stack.enter_async_context, opened)
    try:
        yield opened
    finally:
        call(stack.aclose)


async def python(box: Sandbox, code: str, **more: Any) -> ToolResult:
    return await PythonExecutor().call(box, {"code": code, **more})


async def shell(box: Sandbox, command: str | list[str], **more: Any) -> ToolResult:
    return await ShellExecutor().call(box, {"command": command, **more})


async def files(box: Sandbox, operation: str, file_path: str, **more: Any) -> ToolResult:
    return await FileOperation().call(box, {"operation": operation, "file_path": file_path, **more})


class TestResults:
    def result(self, **figures: Any) -> CommandResult:
        given: dict[str, Any] = {
            "command": ["x"],
            "status": ExecutionStatus.SUCCESS,
            "exit_code": 0,
            "stdout": "",
            "stderr": "",
            **figures,
        }
        return CommandResult(**given)

    def test_a_success_without_stderr_has_no_error(self) -> None:
        assert error_text(self.result()) is None

    def test_a_success_with_stderr_says_so_and_is_one(self) -> None:
        told = from_command("t", self.result(stdout="out", stderr="warning"))
        assert told.success
        assert (told.output, told.error) == ("out", "warning")

    def test_a_failure_names_the_exit_code_and_ends_with_stderr(self) -> None:
        told = from_command(
            "t", self.result(status=ExecutionStatus.ERROR, exit_code=3, stderr="Traceback\nX: y")
        )
        assert not told.success
        assert "exit code 3" in str(told.error)
        assert str(told.error).endswith("X: y")
        assert (told.exit_code, told.stderr) == (3, "Traceback\nX: y")

    def test_what_the_sandbox_says_is_not_said_twice(self) -> None:
        result = self.result(
            status=ExecutionStatus.ERROR, exit_code=1, stderr="bad", error="exit code 1: bad"
        )
        assert error_text(result) == "exit code 1: bad"


class TestPython:
    async def test_it_says_what_was_printed(self, box: Sandbox) -> None:
        result = await python(box, "print(6 * 7)")
        assert (result.output, result.stdout, result.error) == ("42\n", "42\n", None)
        assert (result.exit_code, result.verdict) == (0, Verdict.OK)

    async def test_an_exception_is_an_error_with_its_traceback(self, box: Sandbox) -> None:
        result = await python(box, "print('before'); 1 / 0")
        assert result.status == ExecutionStatus.ERROR
        assert result.output == "before\n"
        assert "Traceback" in str(result.error)
        assert "ZeroDivisionError" in str(result.error)
        assert "exit code 1" in str(result.error)

    async def test_what_goes_to_stderr_is_the_error_of_a_success(self, box: Sandbox) -> None:
        result = await python(box, "import sys; print('careful', file=sys.stderr)")
        assert result.success
        assert result.error == "careful\n"

    async def test_a_time_out_keeps_what_was_printed(self, box: Sandbox) -> None:
        result = await python(
            box, "print('so far', flush=True)\nimport time\ntime.sleep(60)", timeout=0.5
        )
        assert result.status == ExecutionStatus.TIMEOUT
        assert result.verdict == Verdict.WALL_TIMEOUT
        assert result.output == "so far\n"
        assert result.exit_code == -1
        assert "Command timed out after 0.5 seconds" in str(result.error)

    async def test_it_takes_input_variables_and_a_folder(self, box: Sandbox) -> None:
        await box.files.mkdir("there")
        result = await python(
            box,
            "import os; print(input(), os.environ['COLOUR'], os.path.basename(os.getcwd()))",
            stdin="a line\n",
            env={"COLOUR": "red"},
            cwd="there",
        )
        assert result.output == "a line red there\n"

    @pytest.mark.parametrize("code", ["", "  \n"])
    async def test_no_code_is_refused(self, box: Sandbox, code: str) -> None:
        result = await python(box, code)
        assert result.verdict == Verdict.INVALID_PARAMETERS
        assert result.error == "No code provided"
        with pytest.raises(ConfigError, match="No code provided"):
            await PythonExecutor().execute(box, code=code)

    async def test_every_run_is_fresh_unless_asked_otherwise(self, box: Sandbox) -> None:
        await python(box, "x = 1")
        for interactive in (None, False):
            assert "NameError" in str((await python(box, "x", interactive=interactive)).error)

    async def test_keeping_state_takes_a_kernel(self) -> None:
        async with WithoutKernels() as box:
            with pytest.raises(CapabilityError, match="kernel"):
                await python(box, "x", interactive=True)

    async def test_a_kernel_has_one_folder_one_user_and_one_environment(self, box: Sandbox) -> None:
        result = await python(box, "x", interactive=True, cwd="/", user="root")
        assert result.verdict == Verdict.INVALID_PARAMETERS
        assert "cwd, user" in str(result.error)

    async def test_a_request_may_set_the_time_out(self, box: Sandbox) -> None:
        result = await PythonExecutor().call(
            box, {"code": "import time; time.sleep(60)"}, timeout=0.2
        )
        assert "0.2 seconds" in str(result.error)


class TestShell:
    async def test_a_string_is_a_shell_line(self, box: Sandbox) -> None:
        result = await shell(box, "echo $((6 * 7)) | cat; exit 5")
        assert result.output == "42\n"
        assert result.exit_code == 5
        assert "exit code 5" in str(result.error)
        assert result.metadata["shell"] in {"bash", "sh"}

    async def test_a_list_is_a_program_that_no_shell_sees(self, box: Sandbox) -> None:
        result = await shell(box, ["echo", "$HOME", ";", "false"])
        assert result.output == "$HOME ; false\n"

    async def test_a_float_is_a_time_out(self, box: Sandbox) -> None:
        result = await shell(box, ["bash", "-c", "echo started; sleep 60"], timeout=0.75)
        assert result.status == ExecutionStatus.TIMEOUT
        assert result.output == "started\n"
        assert "Command timed out after 0.75 seconds" in str(result.error)

    @pytest.mark.parametrize("command", ["", "  ", [], [""]])
    async def test_no_command_is_refused(self, box: Sandbox, command: str | list[str]) -> None:
        result = await shell(box, command)
        assert result.verdict == Verdict.INVALID_PARAMETERS
        assert result.error == "No command provided"

    @pytest.mark.parametrize("command", ["a\0b", ["a", "b\0"]])
    async def test_what_no_program_can_be_given_is_refused(
        self, box: Sandbox, command: str | list[str]
    ) -> None:
        assert (await shell(box, command)).verdict == Verdict.INVALID_PARAMETERS

    async def test_a_missing_program_is_its_own_failure(self, box: Sandbox) -> None:
        result = await shell(box, ["no-such-program"])
        assert result.exit_code == 127
        assert result.status == ExecutionStatus.ERROR


class TestFiles:
    @pytest.mark.parametrize(
        ("write", "read"), [("write", "read"), ("write_file", "read_file"), ("create", "read")]
    )
    async def test_what_is_written_can_be_read(self, box: Sandbox, write: str, read: str) -> None:
        result = await files(box, write, "deep/down/a.txt", content="é\n")
        assert result.output == "File written successfully: deep/down/a.txt"
        result = await files(box, read, "deep/down/a.txt")
        assert (result.output, result.error) == ("é\n", None)

    async def test_an_encoding_is_used_both_ways(self, box: Sandbox) -> None:
        await files(box, "write", "latin", content="é", encoding="latin-1")
        assert await box.files.read("latin") == b"\xe9"
        assert (await files(box, "read", "latin", encoding="latin-1")).output == "é"

    async def test_bytes_travel_as_base64(self, box: Sandbox) -> None:
        data = bytes(range(256))
        text = base64.b64encode(data).decode()
        assert (await files(box, "write", "blob", content=text, encoding="base64")).success
        assert await box.files.read("blob") == data
        assert (await files(box, "read", "blob", encoding="base64")).output == text

    async def test_text_that_is_none_is_shown_and_marked(self, box: Sandbox) -> None:
        await box.files.write("odd", b"a\xffb")
        result = await files(box, "read", "odd")
        assert result.output == "a\ufffdb"
        assert result.metadata["lossy"] is True

    async def test_a_long_file_is_cut_and_says_what_was_lost(self) -> None:
        config = {"output_limit": 5}
        async with SandboxFactory.create_sandbox("subprocess", config) as small:
            await small.files.write("long", "aaaaé" + "x" * 10)
            result = await files(small, "read", "long")
            assert (result.output, result.truncated) == ("aaaa", {"stdout": 11})
            assert "lossy" not in result.metadata

    async def test_what_is_there_is_told(self, box: Sandbox) -> None:
        await files(box, "write", "there.txt", content="x")
        assert (await files(box, "exists", "there.txt")).output == "exists"
        assert (await files(box, "exists", "nowhere")).output == "does not exist"
        result = await files(box, "stat", "there.txt")
        assert result.metadata["stat"]["size"] == 1
        assert result.output.startswith("-rw")

    @pytest.mark.parametrize("operation", ["list", "list_dir"])
    async def test_a_folder_is_listed(self, box: Sandbox, operation: str) -> None:
        await files(box, "write", "folder/a", content="x")
        await files(box, "mkdir", "folder/sub")
        result = await files(box, operation, "folder")
        assert [entry["name"] for entry in result.metadata["entries"]] == ["a", "sub"]
        lines = result.output.splitlines()
        assert lines[0].startswith("-")
        assert lines[0].endswith(" a")
        assert lines[1].startswith("d")

    async def test_levels_below_are_listed_on_request(self, box: Sandbox) -> None:
        await files(box, "write", "tree/a/b", content="x")
        result = await files(box, "list", "tree", depth=2)
        assert len(result.metadata["entries"]) == 2
        assert "b" in result.output

    async def test_deleting_is_the_same_twice(self, box: Sandbox) -> None:
        await files(box, "write", "gone/a", content="x")
        result = await files(box, "delete", "gone")
        assert result.output == "Successfully deleted: gone"
        assert not await box.files.exists("gone")
        again = await files(box, "delete", "gone")
        assert again.success
        assert again.metadata["existed"] is False

    async def test_text_is_found_and_replaced(self, box: Sandbox) -> None:
        await files(box, "write", "src/a.py", content="one\ntwo\none two\n")
        result = await files(box, "search", "src", pattern="^one")
        assert [match["line"] for match in result.metadata["matches"]] == [1, 3]
        assert "one two" in result.output
        result = await files(box, "replace", "src/a.py", old="one", new="1")
        assert result.output == "Replaced 2 occurrences in src/a.py"
        assert await box.files.read("src/a.py") == b"1\ntwo\n1 two\n"
        result = await files(box, "replace", "src/a.py", old="none", new="1")
        assert not result.success

    async def test_a_file_is_moved(self, box: Sandbox) -> None:
        await files(box, "write", "from", content="x")
        assert (await files(box, "move", "from", target="to")).success
        assert await box.files.exists("to")
        assert not await box.files.exists("from")

    async def test_relative_paths_start_where_asked(self, box: Sandbox) -> None:
        await files(box, "write", "a", content="x", cwd=f"{box.config.working_dir}/base")
        assert await box.files.exists("base/a")

    @pytest.mark.parametrize(
        ("operation", "path", "words"),
        [
            ("read", "nowhere", "No such file"),
            ("read", ".", "Is a directory"),
            ("list", "nowhere", "No such file"),
            ("stat", "nowhere", "No such file"),
        ],
    )
    async def test_trouble_is_named(
        self, box: Sandbox, operation: str, path: str, words: str
    ) -> None:
        result = await files(box, operation, path)
        assert result.status == ExecutionStatus.ERROR
        assert result.verdict == Verdict.ERROR
        assert words in str(result.error)

    @pytest.mark.parametrize(
        ("parameters", "words"),
        [
            ({"operation": "paint", "file_path": "a"}, "Unknown operation: paint"),
            ({"operation": "read", "file_path": " "}, "No file path provided"),
            ({"operation": "write", "file_path": "a"}, "Content is required for write"),
            ({"operation": "move", "file_path": "a"}, "Target is required for move"),
            ({"operation": "search", "file_path": "a"}, "Pattern is required for search"),
            ({"operation": "search", "file_path": ".", "pattern": "("}, "pattern"),
            ({"operation": "replace", "file_path": "a", "old": "", "new": ""}, "old"),
            ({"operation": "read", "file_path": "a", "encoding": "rot13"}, "Unknown encoding"),
            ({"operation": "read", "file_path": "a", "encoding": "klingon"}, "Unknown encoding"),
            (
                {"operation": "write", "file_path": "a", "content": "é", "encoding": "ascii"},
                "content is not ascii",
            ),
            (
                {"operation": "write", "file_path": "a", "content": "é", "encoding": "base64"},
                "content is not base64",
            ),
            ({"operation": "read", "file_path": "a\0b"}, ""),
        ],
    )
    async def test_a_wrong_request_is_refused(
        self, box: Sandbox, parameters: dict[str, Any], words: str
    ) -> None:
        result = await FileOperation().call(box, parameters)
        assert result.verdict == Verdict.INVALID_PARAMETERS
        assert words in str(result.error)


class TestManyLanguages:
    async def run(self, box: Sandbox, language: str, code: str, **more: Any) -> ToolResult:
        return await MultiCodeExecutor().call(box, {"language": language, "code": code, **more})

    async def test_a_program_runs_in_a_folder_of_its_own_that_goes_away(self, box: Sandbox) -> None:
        before = await box.files.list(".")
        result = await self.run(box, "bash", "cat data/a.txt; pwd", files={"data/a.txt": "text\n"})
        assert result.success, result.error
        first, where = result.output.splitlines()
        assert first == "text"
        assert where != box.config.working_dir
        assert [entry.name for entry in await box.files.list(".")] == [
            entry.name for entry in before
        ]

    async def test_python_is_the_sandboxes_own(self, box: Sandbox) -> None:
        result = await self.run(
            box, "Python", "import helper; print(helper.x, input())",
            files={"helper.py": "x = 41"}, stdin="42", env={"A": "b"},
        )  # fmt: skip
        assert result.output == "41 42\n", result.error
        assert result.metadata["stage"] == "run"

    async def test_what_is_missing_is_named_with_its_package(self, box: Sandbox) -> None:
        result = await self.run(box, "racket", "", env={"PATH": "/nonexistent:/bin"})
        if result.metadata["stage"] == "run":
            result = await self.run(box, "lean", "")
        assert result.status == ExecutionStatus.ERROR
        assert result.metadata["stage"] == "probe"
        assert result.metadata["missing"] in (["racket"], ["lean"])
        assert result.metadata["packages"][0] in str(result.error)

    async def test_a_sandbox_that_cannot_even_be_asked_says_why(self, box: Sandbox) -> None:
        result = await self.run(box, "bash", "echo 1", user="no-such-user")
        assert result.status == ExecutionStatus.ERROR
        assert "missing" not in result.metadata
        assert "no-such-user" in str(result.error)

    @pytest.mark.parametrize(
        ("parameters", "words"),
        [
            ({"language": "cobol", "code": ""}, "language must be one of"),
            ({"language": "bash", "code": "", "files": {"../x": ""}}, "'../x'"),
            ({"language": "bash", "code": "", "files": {"a": 1}}, "files.a must be a string"),
            ({"language": "bash", "code": "", "run_timeout": 0}, "run_timeout must be above 0"),
            ({"language": "bash"}, "code is missing"),
        ],
    )
    async def test_a_wrong_request_is_refused(
        self, box: Sandbox, parameters: dict[str, Any], words: str
    ) -> None:
        result = await MultiCodeExecutor().call(box, parameters)
        assert result.verdict == Verdict.INVALID_PARAMETERS
        assert words in str(result.error)

    async def test_a_time_out_is_the_runs(self, box: Sandbox) -> None:
        result = await self.run(box, "bash", "echo a; sleep 60", run_timeout=0.5, timeout=50)
        assert result.status == ExecutionStatus.TIMEOUT
        assert result.output == "a\n"
        assert "0.5 seconds" in str(result.error)
        assert result.metadata["stage"] == "run"
