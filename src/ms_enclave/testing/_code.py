"""Running Python: a fresh interpreter for every program."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.errors import CapabilityError, ConfigError
from ms_enclave.model import ExecutionStatus, Verdict
from ms_enclave.testing._suite import SandboxSuite, lacks, needs

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox

__all__ = ["CodeContract"]


class CodeContract(SandboxSuite):
    """`run_code`, over any handle; skipped for sandboxes without the capability "python"."""

    @pytest.fixture
    def python(self, box: Sandbox) -> Sandbox:
        """The shared sandbox, where it has Python."""
        needs(box, "python")
        return box

    async def test_it_prints(self, python: Sandbox) -> None:
        result = await python.run_code("import sys; print('out'); print('err', file=sys.stderr)")
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)
        assert (result.status, result.verdict) == (ExecutionStatus.SUCCESS, Verdict.OK)

    async def test_it_is_the_main_program(self, python: Sandbox) -> None:
        result = await python.run_code(
            "print(__name__, __import__('sys').argv[1:])", args=["a b", ""]
        )
        assert result.stdout == "__main__ ['a b', '']\n"

    async def test_its_classes_and_functions_are_those_of_a_script(self, python: Sandbox) -> None:
        code = (
            "import dataclasses, pickle\n"
            "@dataclasses.dataclass\n"
            "class P:\n    x: int\n"
            "print(pickle.loads(pickle.dumps(P(3))))\n"
        )
        assert (await python.run_code(code)).stdout == "P(x=3)\n"

    async def test_an_exception_is_a_traceback_and_exit_code_1(self, python: Sandbox) -> None:
        result = await python.run_code("def f():\n    raise KeyError('gone')\nf()")
        assert (result.exit_code, result.verdict) == (1, Verdict.ERROR)
        assert "Traceback" in result.stderr
        assert "KeyError: 'gone'" in result.stderr
        assert "in f" in result.stderr

    async def test_a_syntax_error_is_the_programs(self, python: Sandbox) -> None:
        result = await python.run_code("def f(:")
        assert result.exit_code == 1
        assert "SyntaxError" in result.stderr

    @pytest.mark.parametrize(
        ("code", "exit_code"),
        [
            ("import sys; sys.exit(5)", 5),
            ("raise SystemExit", 0),
            ("import sys; sys.exit('bad')", 1),
            ("import os; os._exit(9)", 9),
            ("", 0),
        ],
    )
    async def test_the_exit_code_is_pythons(
        self, python: Sandbox, code: str, exit_code: int
    ) -> None:
        assert (await python.run_code(code)).exit_code == exit_code

    async def test_a_crash_is_a_signal(self, python: Sandbox) -> None:
        result = await python.run_code("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        assert (result.exit_code, result.signal, result.verdict) == (139, 11, Verdict.SIGNAL)

    async def test_nothing_is_left_for_the_next_one(self, python: Sandbox) -> None:
        await python.run_code("import sys, json; json.left = sys.left = x = 1")
        result = await python.run_code(
            "import sys, json; print(hasattr(json, 'left'), hasattr(sys, 'left'), 'x' in globals())"
        )
        assert result.stdout == "False False False\n"

    async def test_it_reads_its_input(self, python: Sandbox) -> None:
        result = await python.run_code("print(sum(map(int, open(0))))", stdin="1\n2\n3\n")
        assert result.stdout == "6\n"
        assert (await python.run_code("input()")).exit_code == 1

    async def test_it_has_its_folder_and_environment(self, python: Sandbox) -> None:
        await python.files.mkdir("its-folder")
        result = await python.run_code(
            "import os; print(os.path.basename(os.getcwd()), os.environ['A'])",
            cwd="its-folder",
            env={"A": "é"},
        )
        assert result.stdout == "its-folder é\n"

    async def test_it_finds_modules_in_its_folder(self, python: Sandbox) -> None:
        await python.files.write("beside_it.py", "VALUE = 7")
        assert (await python.run_code("import beside_it; print(beside_it.VALUE)")).stdout == "7\n"

    async def test_a_time_out_ends_it_and_keeps_the_output(self, python: Sandbox) -> None:
        result = await python.run_code("print('so far', flush=True)\nwhile True: pass", timeout=2)
        assert (result.verdict, result.exit_code) == (Verdict.WALL_TIMEOUT, -1)
        assert result.stdout == "so far\n"

    async def test_threads_and_children_of_it_end_with_a_time_out(self, python: Sandbox) -> None:
        code = (
            "import threading, time, subprocess, sys\n"
            "threading.Thread(target=time.sleep, args=(60,)).start()\n"
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print('started', flush=True)\n"
        )
        result = await python.run_code(code, timeout=2)
        assert result.verdict == Verdict.WALL_TIMEOUT
        assert result.stdout == "started\n"

    async def test_surrogates_and_bytes_come_back_as_text(self, python: Sandbox) -> None:
        code = "import sys; sys.stdout.buffer.write(b'\\xff\\xe2\\x82')"
        assert (await python.run_code(code)).stdout == "\ufffd\ufffd"

    @pytest.mark.parametrize("code", [None, b"print()", 5, "\ud800"])
    async def test_what_is_no_code_is_the_callers_mistake(self, python: Sandbox, code: Any) -> None:
        with pytest.raises(ConfigError):
            await python.run_code(code)

    async def test_without_python_it_says_who_has_it(self, box: Sandbox) -> None:
        lacks(box, "python")
        with pytest.raises(CapabilityError) as caught:
            await box.run_code("1")
        assert caught.value.capability == "python"
