"""The command line, from outside: what it prints, how it ends, what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

WITH_TEST_BACKEND = textwrap.dedent(
    """
    import sys
    from tests.support.subprocess_box import install
    install()
    from ms_enclave.cli import run_cmd
    sys.argv[0] = "ms-enclave"
    run_cmd()
    """
)
ROOT = Path(__file__).parents[2]


def command(*words: str, backend: bool = True) -> list[str]:
    """The command line of our command, knowing the type `subprocess` where `backend` is set."""
    source = WITH_TEST_BACKEND if backend else "from ms_enclave.cli import run_cmd; run_cmd()"
    return [sys.executable, "-c", source, *words]


def enclave(
    *words: str, stdin: bytes = b"", backend: bool = True, **more: Any
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*words, backend=backend),
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        cwd=more.pop("cwd", ROOT),
        env={**os.environ, "COLUMNS": "100", **more.pop("env", {})},
        **more,
    )


def run(*words: str, stdin: bytes = b"", **more: Any) -> subprocess.CompletedProcess[bytes]:
    return enclave("run", "--type", "subprocess", *words, stdin=stdin, **more)


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that an error is."""
    text = done.stderr.decode()
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    assert text.startswith("ms-enclave: ")
    return text


# --- what a program shows ---


def test_code_is_run_and_its_output_is_ours() -> None:
    done = run("-c", "print(1)")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n", b"")


def test_a_file_gets_its_arguments_options_among_them(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys\nprint(sys.argv[1:])\n")
    done = run(str(program), "a", "--json", "--", "-c")
    assert done.stdout == b"['a', '--json', '--', '-c']\n"


def test_code_gets_arguments() -> None:
    assert run("-c", "import sys; print(sys.argv[1:])", "a", "-b").stdout == b"['a', '-b']\n"


def test_a_file_may_declare_its_encoding(tmp_path: Path) -> None:
    program = tmp_path / "latin.py"
    program.write_bytes("# coding: latin-1\nprint(ascii('é'))\n".encode("latin-1"))
    assert run(str(program)).stdout == b"'\\xe9'\n"


def test_a_dash_reads_the_program_from_standard_input() -> None:
    assert run("-", "x", stdin=b"import sys; print(sys.argv[1:])").stdout == b"['x']\n"


def test_a_command_is_run_without_a_shell_between() -> None:
    done = run("--", "sh", "-c", 'echo "$1"; echo err >&2; exit 5', "sh", "a  b; $HOME")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"a  b; $HOME\n", b"err\n")


def test_bytes_that_are_no_text_come_through_unchanged() -> None:
    every = bytes(range(256))
    code = (
        "import sys; b = bytes(range(256)); sys.stdout.buffer.write(b); sys.stderr.buffer.write(b)"
    )
    done = run("-c", code)
    assert done.stdout == every
    assert done.stderr == every


def test_output_is_shown_while_the_program_runs() -> None:
    code = "import sys; print('ready', flush=True); sys.stdin.read(); print('done')"
    with subprocess.Popen(
        command("run", "--type", "subprocess", "--stdin", "-c", code),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.stdin.close()
        assert child.stdout.read() == b"done\n"
    assert child.returncode == 0


def test_standard_input_is_passed_on_when_asked_for() -> None:
    data = os.urandom(300_000)
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    assert run("--stdin", "-c", code, stdin=data).stdout == data
    assert run("-c", code, stdin=data).stdout == b""


def test_environment_and_folder_are_those_given(tmp_path: Path) -> None:
    code = "import os; print(os.environ.get('A'), os.environ.get('B'), os.environ.get('C'))"
    done = run("-e", "A=1=2", "-e", "B", "-e", "UNSET", "-c", code, env={"B": "ours", "C": "no"})
    assert done.stdout == b"1=2 ours None\n"
    assert run("--cwd", "/", "-c", "import os; print(os.getcwd())").stdout == b"/\n"


def test_a_large_output_is_cut_and_the_loss_is_told() -> None:
    done = run("--output-limit", "1k", "-c", "print('x' * 5000)")
    assert done.returncode == 0
    assert done.stdout == b"x" * 1024
    assert "3977 more bytes of stdout were dropped" in complaint(done)


def test_a_slow_reader_loses_nothing() -> None:
    with subprocess.Popen(
        command("run", "--type", "subprocess", "-c", "print('x' * 1_000_000)"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        time.sleep(1)  # the program has long ended, and its output waits for us
        assert len(child.stdout.read()) == 1_000_001
    assert child.returncode == 0


def test_a_reader_that_has_seen_enough_ends_the_program_quietly() -> None:
    with subprocess.Popen(
        command("run", "--type", "subprocess", "--", "sh", "-c", "while echo y; do :; done"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.wait(20) == 141
        assert child.stderr.read() == b""


# --- how it ends ---


@pytest.mark.parametrize("code", [0, 1, 2, 77, 255])
def test_the_exit_code_is_the_programs(code: int) -> None:
    assert run("-c", f"raise SystemExit({code})").returncode == code


def test_a_failing_program_speaks_for_itself() -> None:
    done = run("-c", "raise ValueError('mine')")
    assert done.returncode == 1
    assert done.stderr.endswith(b"ValueError: mine\n")
    assert b"ms-enclave" not in done.stderr.splitlines()[-1]


def test_a_signal_is_128_and_its_number() -> None:
    done = run("-c", "import os; os.kill(os.getpid(), 9)")
    assert done.returncode == 137
    assert "killed by signal 9" in complaint(done)


def test_a_missing_program_is_127() -> None:
    done = run("--", "no-such-program-anywhere")
    assert done.returncode == 127
    assert b"no-such-program-anywhere" in done.stderr


def test_a_time_out_is_124_and_keeps_what_was_printed() -> None:
    done = run("--timeout", "1", "-c", "print('before', flush=True)\nwhile True: pass")
    assert (done.returncode, done.stdout) == (124, b"before\n")
    assert "timed out after 1 seconds" in complaint(done)


def test_ctrl_c_ends_the_program_and_is_130() -> None:
    code = "import time; print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen(
        command("run", "--type", "subprocess", "--timeout", "60", "-c", code),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
        assert b"Traceback" not in child.stderr.read()


# --- as JSON ---


def test_json_is_the_result_and_nothing_else() -> None:
    done = run(
        "--json", "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    )
    result = json.loads(done.stdout)
    assert done.returncode == 3
    assert done.stderr == b""
    assert (result["stdout"], result["stderr"], result["exit_code"]) == ("out\n", "err\n", 3)
    assert result["verdict"] == "error"


def test_json_of_a_time_out() -> None:
    done = run("--json", "--timeout", "0.5", "--", "sleep", "60")
    assert done.returncode == 124
    assert json.loads(done.stdout)["verdict"] == "wall_timeout"


# --- what cannot be run ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--no-such-option", "-c", "1"], "--no-such-option"),
        (["-c"], "-c"),
        (["-c", "1", "--", "true"], "one of FILE, -c CODE and -- COMMAND"),
        (["--"], "no command"),
        (["--timeout", "5"], "nothing to run"),
        (["--timeout", "soon", "-c", "1"], "--timeout"),
        (["--timeout", "0", "-c", "1"], "timeout: Input should be greater than 0"),
        (["--pids", "-3", "-c", "1"], "pids_limit: Input should be greater than 0"),
        (["--memory", "much", "-c", "1"], "--memory"),
        (["--disk", "-1", "-c", "1"], "--disk"),
        (["--volume", "here", "-c", "1"], "--volume"),
        (["--volume", "/a:relative", "-c", "1"], "--volume"),
        (["--volume", "/a:/b:rx", "-c", "1"], "--volume"),
        (["--env", "=x", "-c", "1"], "--env"),
        (["/nonexistent/program.py"], "cannot read /nonexistent/program.py"),
        (["/"], "cannot read /"),
        (["--stdin", "-"], "--stdin"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_125(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 125
    assert done.stdout == b""
    assert said in complaint(done)


def test_a_file_that_is_no_text_is_one_line_and_125(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_bytes(b"\xff\xfe\x00")
    assert "is not Python source" in complaint(run(str(program)))


def test_an_unknown_type_is_one_line_and_125() -> None:
    done = enclave("run", "--type", "no-such-type", "-c", "1")
    assert done.returncode == 125
    assert "no-such-type" in complaint(done)


def test_an_unknown_command_is_one_line_and_125() -> None:
    done = enclave("fly")
    assert done.returncode == 125
    assert "fly" in complaint(done)
    assert "--help" in complaint(done)


# --- help and the rest ---


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_the_commands(words: Sequence[str]) -> None:
    done = enclave(*words)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    for name in ("run", "tools", "doctor", "--version"):
        assert name in text


@pytest.mark.parametrize("words", [["run"], ["run", "--help"]])
def test_help_of_run_names_its_options_and_exit_codes(words: Sequence[str]) -> None:
    done = enclave(*words)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    for name in (
        "--type",
        "--timeout",
        "--memory",
        "--network",
        "--volume",
        "--json",
        "124",
        "137",
    ):
        assert name in text


def test_the_version_is_the_packages() -> None:
    assert enclave("--version").stdout.decode() == f"ms-enclave {__version__}\n"


def test_tools_are_listed_with_what_they_do() -> None:
    done = enclave("tools")
    assert done.returncode == 0
    for name in ("python_executor", "shell_executor", "file_operation", "multi_code_executor"):
        assert name in done.stdout.decode()


def test_a_tools_schema_is_json_in_openais_shape() -> None:
    schema = json.loads(enclave("tools", "shell_executor").stdout)
    assert schema["type"] == "function"
    assert schema["function"]["name"] == "shell_executor"
    every = json.loads(enclave("tools", "--json").stdout)
    assert schema in every
    strict = json.loads(enclave("tools", "shell_executor", "--strict").stdout)
    assert strict["function"]["strict"] is True


def test_an_unknown_tool_is_one_line_and_125() -> None:
    done = enclave("tools", "no-such-tool")
    assert done.returncode == 125
    assert "no-such-tool" in complaint(done)


def test_doctor_tries_each_type() -> None:
    done = enclave("doctor", "subprocess", "--json")
    assert done.returncode == 0
    [found] = json.loads(done.stdout)
    assert (found["sandbox_type"], found["works"], found["tier"]) == ("subprocess", True, "none")
    assert "subprocess: works" in enclave("doctor", "subprocess").stdout.decode()


def test_doctor_says_what_to_do_where_nothing_works() -> None:
    # A program of the test backend that is no guest: a type that does not work here.
    source = WITH_TEST_BACKEND.replace(
        "install()\n",
        "install()\nfrom tests.support.subprocess_box import SubprocessSandbox\n"
        "SubprocessSandbox.program = 'raise SystemExit(3)'\n",
    )
    done = subprocess.run(
        [sys.executable, "-c", source, "doctor", "subprocess"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    text = done.stdout.decode()
    assert "does not work here" in text
    assert "do:" in text
    assert "Traceback" not in text + done.stderr.decode()


def test_a_fault_of_ours_is_one_line_too(tmp_path: Path) -> None:
    source = (
        "import sys; from ms_enclave.boxes import SandboxFactory\n"
        "SandboxFactory.get_available_types = classmethod(lambda cls: 1 / 0)\n"
        "from ms_enclave.cli import run_cmd; run_cmd()"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, "doctor"],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 125
    assert "ZeroDivisionError" in complaint(done)
    assert "MS_ENCLAVE_DEBUG=1" in complaint(done)


# --- the real thing ---


@pytest.mark.namespaces
def test_the_installed_command_runs_code_in_the_embedded_sandbox() -> None:
    installed = shutil.which("ms-enclave", path=str(Path(sys.executable).parent))
    if installed is None:
        pytest.skip("the command is not installed beside this Python")
    done = subprocess.run(
        [installed, "run", "-c", "import os; print(1, os.getpid() < 100, os.listdir('/sandbox'))"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1 True []\n", b"")


@pytest.mark.namespaces
def test_a_command_keeps_its_exit_code_in_the_embedded_sandbox() -> None:
    assert enclave("run", "--", "sh", "-c", "exit 5", backend=False).returncode == 5


@pytest.mark.namespaces
def test_out_of_memory_is_137_and_said_so() -> None:
    code = "hoard = []\nwhile True: hoard.append(b'x' * (8 << 20))"
    done = enclave("run", "--memory", "64m", "-c", code, backend=False)
    assert done.returncode in {1, 137}  # without control groups it is a refused allocation
    assert b"emory" in done.stderr


@pytest.mark.namespaces
def test_a_volume_is_shown_read_only_unless_asked(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("from outside\n")
    (tmp_path / "file").chmod(0o644)
    done = enclave("run", "-v", f"{tmp_path}:/data", "--", "cat", "/data/file", backend=False)
    assert done.stdout == b"from outside\n"
    done = enclave("run", "-v", f"{tmp_path}:/data", "--", "touch", "/data/new", backend=False)
    assert done.returncode != 0
    assert not (tmp_path / "new").exists()


@pytest.mark.namespaces
def test_doctor_finds_the_embedded_sandbox_and_its_guards() -> None:
    done = enclave("doctor", "process", "--json", backend=False)
    [found] = json.loads(done.stdout)
    assert done.returncode == 0
    assert (found["works"], found["tier"]) == (True, "namespace")
    assert "on" in found["guards"].values()
    assert all(problem["remedy"] for problem in found["problems"])


@pytest.mark.namespaces
def test_doctor_attacks_what_works_and_says_what_it_withstands() -> None:
    done = enclave("doctor", "process", "--attack", "--json", backend=False)
    assert done.returncode == 0, done.stdout
    scores = json.loads(done.stdout)
    assert set(scores) >= {"process"}
    outcomes = {row["outcome"] for rows in scores.values() for row in rows}
    assert outcomes <= {"held", "bounded"}
    assert sum(row["tried"] for row in scores["process"]) > 200


@pytest.mark.namespaces
def test_doctor_sets_off_bombs_where_it_is_asked_to() -> None:
    from ms_enclave.attack import BOMBS

    done = enclave("doctor", "process", "--attack", "--exhaust", "--json", backend=False)
    assert done.returncode == 0, done.stdout
    for rows in json.loads(done.stdout).values():
        outcomes = {row["case"]: row["outcome"] for row in rows}
        assert {outcomes[bomb.name] for bomb in BOMBS} <= {"held", "bounded"}
    assert enclave("doctor", "process", "--exhaust", backend=False).returncode == 125


def test_doctor_does_not_attack_what_has_no_walls() -> None:
    done = enclave("doctor", "subprocess", "--attack", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, {})


@pytest.mark.namespaces
def test_a_cold_run_finds_the_station_that_was_launched_ahead() -> None:
    source = textwrap.dedent(
        """
        import sys
        from ms_enclave.boxes._process_ahead import start_ahead
        start_ahead()
        assert not {"pydantic", "anyio", "asyncio"} & set(sys.modules), "slow to import"
        from ms_enclave.spawner import launch
        assert len(launch._ahead) == 1
        from ms_enclave import blocking
        print(blocking.run("print(1)").stdout, len(launch._ahead))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, timeout=60, check=False
    )
    assert done.stderr == b""
    assert done.stdout == b"1\n 0\n"
