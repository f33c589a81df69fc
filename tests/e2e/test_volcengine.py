"""Sandboxes of type `volcengine` against a service of ours that speaks the protocol for real."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from ms_enclave.boxes import VolcengineSandbox
from ms_enclave.errors import (
    AuthenticationError,
    CapabilityError,
    ConfigError,
    QuotaExceededError,
    SandboxLostError,
    SandboxStateError,
    ServerUnreachableError,
    UnknownTypeError,
)
from ms_enclave.manager import VolcengineSandboxManager
from ms_enclave.model import (
    ExecutionStatus,
    SandboxStatus,
    Verdict,
    VolcengineSandboxConfig,
    VolcengineSandboxManagerConfig,
)
from tests.support.fusion import Reply, Request, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "Bearer k3y-that-nobody-may-see"


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        yield service


def sandbox(service: Service, **config: Any) -> VolcengineSandbox:
    return VolcengineSandbox({"base_url": service.url, **config})


# --- programs ---


async def test_a_program_runs_and_its_failure_is_a_result(service: Service) -> None:
    async with sandbox(service) as box:
        good = await box.run_code("import sys; print(6 * 7); print('e', file=sys.stderr)")
        bad = await box.run_code("print('before'); raise SystemExit(3)")
        killed = await box.run_code("import os; os.kill(os.getpid(), 9)")
    assert (good.stdout, good.stderr, good.exit_code) == ("42\n", "e\n", 0)
    assert (good.status, good.verdict) == (ExecutionStatus.SUCCESS, Verdict.OK)
    assert good.isolation == "remote"
    assert (bad.stdout, bad.exit_code, bad.verdict) == ("before\n", 3, Verdict.ERROR)
    assert "exit code 3" in str(bad.error)
    assert (killed.exit_code, killed.signal, killed.verdict) == (137, 9, Verdict.SIGNAL)


async def test_a_program_that_takes_too_long_is_a_time_out(service: Service) -> None:
    async with sandbox(service) as box:
        late = await box.run_code("print('so far', flush=True)\nwhile True: pass", timeout=0.5)
    assert (late.status, late.verdict) == (ExecutionStatus.TIMEOUT, Verdict.WALL_TIMEOUT)
    assert (late.exit_code, late.stdout) == (-1, "so far\n")
    assert late.error == "Command timed out after 0.5 seconds"


async def test_what_a_program_is_given_reaches_it(service: Service) -> None:
    code = "import os, sys\nprint(sys.argv[1:], os.environ['A'], os.environ['B'], os.getcwd())"
    async with sandbox(service, env_vars={"A": "1 'x'"}) as box:
        ran = await box.run_code(code, args=["a b", "c"], env={"B": "2"}, cwd="/usr")
        read = await box.run_code("print(input())", stdin=io.BytesIO(b"from a file\n"))
        failed = await box.run_code("def f():\n    raise KeyError('k')\nf()", args=["x"])
        line = await box.execute_command(
            'cat; echo "$A $B"; pwd', stdin="in ", env={"B": "b"}, cwd="/usr"
        )
        program = await box.execute_command(["printf", "%s|", "a b", "$A"])
        none = await box.execute_command(["no-such-program-here"])
    assert ran.stdout == "['a b', 'c'] 1 'x' 2 /usr\n"
    assert read.stdout == "from a file\n"
    assert "line 2, in f" in failed.stderr
    assert (line.stdout, line.metadata["shell"]) == ("in 1 'x' b\n/usr\n", "bash")
    assert program.stdout == "a b|$A|"
    assert none.exit_code == 127


async def test_output_is_bounded_and_handed_on(service: Service) -> None:
    got: list[tuple[str, bytes]] = []
    code = "import sys; print('x' * 5000); print('é' * 30, file=sys.stderr)"
    async with sandbox(service, output_limit=101) as box:
        result = await box.run_code(code, on_output=lambda name, data: got.append((name, data)))
        killed = await box.run_code(code, limits={"output_action": "kill"})
    assert result.stdout == "x" * 101
    assert result.truncated == {"stdout": 4900}
    assert got == [("stdout", b"x" * 101), ("stderr", ("é" * 30 + "\n").encode())]
    assert killed.verdict == Verdict.OUTPUT_LIMIT


async def test_tools_run(service: Service) -> None:
    tools = ["python_executor", "shell_executor", "multi_code_executor"]
    async with sandbox(service, tools_config=tools) as box:
        python = await box.execute_tool("python_executor", {"code": "print(1 + 1)"})
        shell = await box.execute_tool("shell_executor", {"command": "echo $((2 + 2)); exit 4"})
        code = {"language": "python", "code": "import h; print(h.X)", "files": {"h.py": "X = 9"}}
        multi = await box.execute_tool("multi_code_executor", code)
        other = await box.execute_tool("multi_code_executor", {"language": "r", "code": "1 + 1"})
        wrong = await box.execute_tool("multi_code_executor", {**code, "user": "root"})
        lacking = await box.execute_tool("multi_code_executor", {"language": "go", "code": "x"})
    assert python.output == "2\n"
    assert (shell.output, shell.exit_code) == ("4\n", 4)
    assert (multi.output, multi.metadata["stage"]) == ("9\n", "run")
    assert other.output == "1 + 1"
    assert [r.body["language"] for r in service.requests][-3:] == ["python", "R", "go"]
    assert wrong.verdict == lacking.verdict == Verdict.INVALID_PARAMETERS
    assert "422" in str(lacking.error)


@pytest.mark.toolchain("g++")
async def test_what_does_not_compile_says_so(service: Service) -> None:
    async with sandbox(service, tools_config=["multi_code_executor"]) as box:
        good = await box.execute_tool(
            "multi_code_executor",
            {"language": "cpp", "code": '#include <cstdio>\nint main() { puts("hi"); }'},
        )
        bad = await box.execute_tool("multi_code_executor", {"language": "cpp", "code": "int x"})
    assert good.output == "hi\n"
    assert good.metadata["compile"]["exit_code"] == 0
    assert bad.status == ExecutionStatus.ERROR
    assert "Compilation failed" in str(bad.error)
    assert (bad.metadata["stage"], bad.exit_code) == ("compile", 1)


# --- what it is not ---


async def test_there_is_no_life_inside(service: Service) -> None:
    async with sandbox(service) as box:
        assert box.capabilities == {"python", "languages"}
        assert box.isolation.tier == "remote"
        calls = {
            "files": lambda: box.files.read("x"),
            "commands": lambda: box.start_command("sleep 1"),
            "kernel": lambda: box.kernel(),
            "terminals": lambda: box.shell(),
            "ports": lambda: box.connect(80),
            "users": lambda: box.run_code("1", user="root"),
        }
        for capability, call in calls.items():
            with pytest.raises(CapabilityError) as raised:
                await call()
            assert raised.value.capability == capability
            assert capability == "users" or "process" in raised.value.available_in
        assert await box.list_commands() == []
        assert (await box.run_code("print(1)")).stdout == "1\n"
    with pytest.raises(SandboxStateError):
        await box.run_code("1")
    assert len(service.requests) == 1


@pytest.mark.parametrize("tool", ["file_operation", "background_command", "notebook_executor"])
async def test_a_tool_that_needs_a_life_inside_is_refused(service: Service, tool: str) -> None:
    with pytest.raises(CapabilityError, match=tool):
        async with sandbox(service, tools_config=[tool]):
            pass


@pytest.mark.parametrize(
    "config",
    [
        {"network_enabled": True},
        {"require": ["seccomp"]},
        {"seed": 1},
        {"pids_limit": 3},
        {"resource_limits": {"cpu_time_limit": 2}},
        {"on_owner_death": "keep"},
    ],
)
async def test_what_nobody_here_could_see_to_is_refused(
    service: Service, config: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"the service .* decides that"):
        await sandbox(service, **config).start()


async def test_without_an_address_there_is_no_sandbox() -> None:
    with pytest.raises(ConfigError, match="base_url"):
        await VolcengineSandbox().start()
    with pytest.raises(ConfigError, match="base_url must be provided"):
        VolcengineSandboxManager()
    with pytest.raises(ConfigError, match="use api_key"):
        await VolcengineSandbox({"base_url": "http://me:secret@here"}).start()


async def test_doctor_has_nothing_to_mend_for_it() -> None:
    diagnosis = await VolcengineSandbox.diagnose()
    assert not diagnosis.works
    assert [problem.blocks for problem in diagnosis.problems] == [False]
    assert "base_url" in diagnosis.problems[0].remedy


# --- every field is read ---


async def test_every_field_changes_what_is_sent() -> None:
    with Service(path="/other") as service:
        config = VolcengineSandboxConfig(
            base_url=service.url + "/",
            run_code_path="other",
            api_key=KEY,
            extra_headers={"X-Team": "blue", "authorization": "theirs"},
            dataset_language_map={"humaneval": "python"},
            tool_language_map={"python_executor": "special"},
            tools_config=["python_executor"],
            memory_limit="64m",
            timeout=7,
        )
        async with VolcengineSandbox(config) as box:
            assert (await box.run_language("humaneval", "print(1)")).stdout == "1\n"
            done = await box.execute_tool("python_executor", {"code": "print(1)"})
            assert done.output == "special\n"
            await box.run_language("python", "1", timeout=3, compile_timeout=4, files={"a": "b"})
    first, _, third = service.requests
    assert first.path == "/other"
    assert (first.headers["authorization"], first.headers["x-team"]) == (KEY, "blue")
    assert first.headers["content-type"] == "application/json"
    assert first.body == {
        "code": "print(1)", "language": "python", "run_timeout": 7.0, "memory_limit_MB": 64,
    }  # fmt: skip
    assert (third.body["run_timeout"], third.body["compile_timeout"]) == (3, 4)
    assert third.body["files"] == {"a": "Yg=="}


async def test_a_slow_service_is_given_so_much_time_and_no_more() -> None:
    release = threading.Event()

    def wait(request: Request) -> Reply | None:
        release.wait(30)
        return None

    with Service(reply=wait) as service:
        try:
            async with sandbox(service, request_timeout=0.2, timeout=0.3) as box:
                with pytest.raises(ServerUnreachableError, match=r"within 0\.5 s"):
                    await box.run_code("1")
                assert box.status == SandboxStatus.RUNNING
                release.set()
                assert (await box.run_code("print(2)", timeout=20)).stdout == "2\n"
        finally:
            release.set()


async def test_so_many_at_a_time_and_no_more() -> None:
    with Service() as service:
        manager = VolcengineSandboxManager(base_url=service.url, max_concurrency=2)
        async with manager:
            boxes = [await manager.get_sandbox(await manager.create_sandbox()) for _ in range(3)]
            async with anyio.create_task_group() as group:
                for box in boxes * 3:
                    assert box is not None
                    group.start_soon(box.run_code, "import time; time.sleep(0.1)")
        assert len(service.requests) == 9
        assert service.most_under_way == 2


def _certificate(folder: Path) -> Path:
    place = folder / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    place.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return place


@pytest.mark.toolchain("openssl")
async def test_a_certificate_has_to_be_trusted_unless_told_otherwise(tmp_path: Path) -> None:
    certificate = await anyio.to_thread.run_sync(_certificate, tmp_path)
    with Service(certificate=certificate) as service:
        async with sandbox(service, verify_ssl=False) as box:
            assert (await box.run_code("print(1)")).stdout == "1\n"
        async with sandbox(service) as box:
            with pytest.raises(ServerUnreachableError, match="verify_ssl=False"):
                await box.run_code("print(1)")
        assert len(service.requests) == 1


# --- whose fault ---


async def test_a_wrong_key_is_said_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Service(key="Bearer right") as service:
        config = VolcengineSandboxConfig(
            base_url=service.url, api_key=KEY, extra_headers={"X-Secret": "hush"}
        )
        manager = VolcengineSandboxManager(
            VolcengineSandboxManagerConfig(base_url=service.url, api_key=KEY)
        )
        async with VolcengineSandbox(config) as box, manager:
            with pytest.raises(AuthenticationError, match="api_key") as raised:
                await box.run_code("1")
            texts = [
                repr(config), repr(box.config), repr(manager.config), str(raised.value),
                repr(raised.value.__cause__), repr(raised.value.__context__), repr(vars(box)),
                json.dumps(box.get_info().model_dump(mode="json")), caplog.text,
                json.dumps(await manager.get_stats()),
            ]  # fmt: skip
    for text in texts:
        assert KEY not in text
        assert "hush" not in text
    assert config.model_dump()["api_key"] == KEY


async def test_a_key_is_told_to_no_other_server() -> None:
    with Service() as ours, Service() as theirs:
        manager = VolcengineSandboxManager(base_url=ours.url, api_key=KEY)
        async with manager, manager.sandbox(config={"base_url": theirs.url}) as box:
            await box.run_code("1")
    assert "authorization" not in theirs.requests[0].headers
    with Service() as elsewhere:

        def redirect(request: Request) -> Reply:
            return Reply(307, b"", {"Location": elsewhere.url + "/run_code"})

        with Service(reply=redirect) as moved:
            async with sandbox(moved, api_key=KEY) as box:
                with pytest.raises(ServerUnreachableError, match="somewhere else"):
                    await box.run_code("1")
        assert elsewhere.requests == []


def _says(**body: Any) -> Reply:
    return Reply(200, json.dumps(body).encode())


FAILURES: list[tuple[Reply, type[Exception], str]] = [
    (Reply(500, b"oh no"), ServerUnreachableError, "500: oh no"),
    (Reply(503, b""), ServerUnreachableError, "503"),
    (Reply(404, b"?"), ServerUnreachableError, "run_code_path"),
    (Reply(422, b"language"), ConfigError, "language"),
    (Reply(403, KEY.encode()), AuthenticationError, "403"),
    (Reply(500, b"key " + KEY.encode()), ServerUnreachableError, r"key \*\*\*"),
    (Reply(429, b"", {"Retry-After": "7"}), QuotaExceededError, "429"),
    (Reply(200, b"<html>"), SandboxLostError, "no result of a run: <html>"),
    (Reply(200, b"[1]"), SandboxLostError, "no result"),
    (Reply(200, b'{"status": "Fine"}'), SandboxLostError, "no result"),
    (Reply(200, b"\xff\x00"), SandboxLostError, "no result"),
    (_says(status="Success", message=""), SandboxLostError, "does not say why"),
    (_says(status="SandboxError", message="no room"), SandboxLostError, "no room"),
    (
        _says(status="Failed", message="", run_result={"status": "Error", "stderr": "no bash"}),
        SandboxLostError,
        "no bash",
    ),
    (
        _says(status="Success", message="", run_result={"status": "Finished"}),
        SandboxLostError,
        "does not say",
    ),
]


@pytest.mark.parametrize(("reply", "kind", "words"), FAILURES)
async def test_a_failure_of_the_service_is_an_error_and_costs_one_run(
    reply: Reply, kind: type[Exception], words: str
) -> None:
    replies: list[Reply | None] = [reply, None]
    with Service(reply=lambda _: replies.pop(0)) as service:
        async with sandbox(service, api_key=KEY) as box:
            with pytest.raises(kind, match=words) as raised:
                await box.run_code("1")
            assert KEY not in str(raised.value)
            assert (await box.run_code("print(2)")).stdout == "2\n"


async def test_an_answer_without_end_is_not_read() -> None:
    with Service(reply=lambda _: Reply(200, b'{"status": "', endless=True)) as service:
        async with sandbox(service, output_limit=1000) as box:
            with pytest.raises(SandboxLostError, match=r"more than \d+ bytes"):
                await box.run_code("1")


async def test_a_service_that_is_not_there_is_said() -> None:
    with Service() as service:
        pass
    async with sandbox(service) as box:
        with pytest.raises(ServerUnreachableError, match="does not answer"):
            await box.run_code("1")
        with pytest.raises(ConnectionError):
            await box.execute_command("true")


# --- ends ---


async def test_a_cancelled_call_ends_its_request(service: Service) -> None:
    async with sandbox(service) as box:
        async with anyio.create_task_group() as group:
            group.start_soon(box.run_code, "import time; time.sleep(60)")
            assert await anyio.to_thread.run_sync(service.arrived.acquire, True, 20)
            group.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(service.gone.wait, 20)
        assert (await box.run_code("print(1)")).stdout == "1\n"


async def test_a_stop_ends_the_calls_that_are_under_way(service: Service) -> None:
    box = sandbox(service)
    await box.start()
    async with anyio.create_task_group() as group:

        async def run() -> None:
            with pytest.raises(SandboxStateError):
                await box.run_code("import time; time.sleep(60)")

        group.start_soon(run)
        assert await anyio.to_thread.run_sync(service.arrived.acquire, True, 20)
        await box.stop()
    assert await anyio.to_thread.run_sync(service.gone.wait, 20)


def test_one_handle_serves_many_loops_and_threads(service: Service) -> None:
    box = sandbox(service)
    asyncio.run(box.start())
    printed: list[str] = []

    def work(name: str) -> None:
        for number in range(3):
            result = asyncio.run(box.run_code(f"print('{name}{number}')"))
            printed.append(result.stdout.strip())

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(box.stop())
    assert sorted(printed) == ["a0", "a1", "a2", "b0", "b1", "b2"]


# --- its manager ---


async def test_a_manager_gives_its_sandboxes_what_they_do_not_say() -> None:
    with Service(path="/here") as service:
        manager = VolcengineSandboxManager(
            base_url=service.url,
            run_code_path="/here",
            api_key=KEY,
            extra_headers={"X-Team": "blue"},
            dataset_language_map={"d": "python"},
            tool_language_map={"shell_executor": "special"},
        )
        async with manager:
            async with manager.sandbox() as box:
                assert (await box.execute_command("ignored")).stdout == "special\n"
            own = {"tool_language_map": {"shell_executor": "bash"}, "api_key": "own"}
            async with manager.sandbox("volcengine", own) as box:
                assert (await box.execute_command("echo mine")).stdout == "mine\n"
            ran = await manager.run_code("print(open('a').read())", language="d", files={"a": "A"})
            assert ran.stdout == "A\n"
            with pytest.raises(UnknownTypeError, match="volcengine only"):
                await manager.create_sandbox("process")
    assert [r.headers["authorization"] for r in service.requests] == [KEY, "own", KEY]
    assert {r.headers.get("x-team") for r in service.requests} == {"blue"}
