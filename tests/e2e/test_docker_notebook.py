"""Notebooks in containers of a real engine: everything that Jupyter shows, and nothing left."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from ms_enclave.boxes import DockerNotebook, DockerNotebookSandbox, SandboxFactory
from ms_enclave.errors import CapabilityError, ConfigError, SandboxLostError, SandboxStartError
from ms_enclave.model import Execution, SandboxStatus, Verdict
from ms_enclave.tools import ToolFactory
from tests.e2e.test_docker import containers, docker
from tests.support.engine import IMAGE, WHEELS, WITHOUT_PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.docker

CONFIG: dict[str, Any] = {"wheels": str(WHEELS), "pull": "never"}


def our_images() -> set[str]:
    """Every image that a build of ours has made, those of its steps too."""
    return set(docker("images", "-aq", "--filter", "label=ms-enclave.build").split())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    assert containers() == []
    yield
    assert containers() == []


# --- what a cell shows ---

RICH = """
from IPython.display import HTML, Image, display, clear_output
print('gone'); clear_output()
print('text'); display(HTML('<b>x</b>'), {'a': 1})
handle = display('old', display_id='it'); handle.update('new')
display({'application/json': {'k': [1]}}, raw=True, metadata={'m': 1})
{'answer': 42}
"""


_BY_JUPYTER = """
import json, sys
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel()
def tell(message):
    print(json.dumps([message["header"]["msg_type"], message["content"]]))
client.execute_interactive(sys.argv[1], timeout=60, output_hook=tell)
client.stop_channels()
manager.shutdown_kernel(now=True)
"""


def by_jupyter(code: str) -> list[tuple[str, Any]]:
    """What ipykernel itself says of a cell, by its own client."""
    words = [sys.executable, "-c", _BY_JUPYTER, code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=True)
    return [shown(*json.loads(line)) for line in done.stdout.splitlines()]


def shown(kind: str, content: dict[str, Any]) -> tuple[str, Any]:
    if kind == "error":
        return kind, (content["ename"], content["evalue"])
    return kind, {key: content[key] for key in sorted(content) if key != "execution_count"}


@pytest.mark.parametrize("code", [RICH, "1/0", "%%html\n<i>y</i>"], ids=["rich", "error", "magic"])
async def test_a_cell_shows_what_jupyter_shows(code: str) -> None:
    expected = await anyio.to_thread.run_sync(by_jupyter, code)
    async with DockerNotebook(CONFIG) as box:
        kernel = await box.kernel()
        events = [event async for event in kernel.run_stream(code)]
    found = [shown(event.type, event.content) for event in events]
    assert [row for row in found if row[0] != "execute_reply"] == expected


async def test_input_interrupt_restart_and_several_kernels() -> None:
    async with DockerNotebookSandbox(CONFIG) as box:
        one, other = await box.kernel("one"), await box.kernel("other")

        def answer(prompt: str) -> str:
            return f"to {prompt}"

        assert (await one.run("x = input('q'); x", on_input=answer)).result == {
            "text/plain": "'to q'"
        }
        done = await one.run("while True: pass", timeout=0.5)
        assert done.verdict is Verdict.WALL_TIMEOUT
        assert (await one.run("x")).result == {"text/plain": "'to q'"}
        said = [event async for event in one.run_stream("while 1: 1", timeout=0.5, silent=True)]
        assert said[-1].execution is not None
        assert said[-1].execution.verdict is Verdict.WALL_TIMEOUT
        assert (await one.run("x")).result == {"text/plain": "'to q'"}
        done = await one.run(
            "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
            timeout=0.5,
        )
        assert done.verdict is Verdict.WALL_TIMEOUT
        assert one.status == "dead"
        assert (await other.run("'x' in globals()")).result == {"text/plain": "False"}
        await one.restart()
        assert (await one.run("'x' in globals()")).result == {"text/plain": "False"}


async def test_an_interrupt_before_the_kernel_is_at_its_cell_is_not_lost() -> None:
    async with DockerNotebook(CONFIG) as box:
        kernel = await box.kernel()
        for _ in range(3):
            async with anyio.create_task_group() as group:
                outcome: list[Execution] = []

                async def cell(outcome: list[Execution] = outcome) -> None:
                    outcome.append(await kernel.run("import time; time.sleep(1000)"))

                group.start_soon(cell)
                while kernel.status != "busy":
                    await anyio.sleep(0)
                with anyio.fail_after(20):
                    await kernel.interrupt()
                    while not outcome:
                        await anyio.sleep(0.01)
            assert outcome[0].error is not None
            assert outcome[0].error.name == "KeyboardInterrupt"


async def test_its_own_names_can_be_read() -> None:
    async with DockerNotebook(CONFIG) as box:
        await box.kernel()
        assert box.kernel_id
        assert box.base_url == "http://127.0.0.1:8888"
        assert box.ws is None


async def test_tools_keep_what_cells_define() -> None:
    config = {**CONFIG, "tools_config": ["notebook_executor", "python_executor", "shell_executor"]}
    async with SandboxFactory.create_sandbox("docker_notebook", config) as box:
        await box.execute_tool("notebook_executor", {"code": "x = 6"})
        result = await box.execute_tool("notebook_executor", {"code": "x * 7"})
        assert result.output is not None
        assert "42" in str(result.output)
        kept = await box.execute_tool("python_executor", {"code": "print(x)"})
        assert str(kept.output).strip() == "6"
        fresh = await box.execute_tool(
            "python_executor", {"code": "print(x)", "interactive": False}
        )
        assert "NameError" in str(fresh.error)
        assert (
            str((await box.execute_tool("shell_executor", {"command": "echo y"})).output) == "y\n"
        )


def _tools_of_containers() -> list[str]:
    """All but those about checkpoints, which no container has."""
    names = sorted(ToolFactory.get_available_tools())
    return [name for name in names if not ToolFactory.create_tool(name).has_checkpoints]


async def test_every_tool_that_docker_takes() -> None:
    names = await anyio.to_thread.run_sync(_tools_of_containers)
    async with DockerNotebook({**CONFIG, "tools_config": names}) as box:
        assert sorted(box.get_available_tools()) == names


async def test_a_kernel_without_ipython_is_refused() -> None:
    async with DockerNotebook(CONFIG) as box:
        with pytest.raises(CapabilityError, match="ipython"):
            await box.kernel(ipython=False)


# --- faults ---


async def test_a_flood_is_cut_and_the_sandbox_lives() -> None:
    async with DockerNotebook(CONFIG) as box:
        kernel = await box.kernel()
        done = await kernel.run("x = 1\nprint('y' * (100 << 20))", timeout=60)
        assert done.success, done.error
        assert len(done.stdout) == 10 << 20
        assert done.truncated["stdout"] == (90 << 20) + 1
        assert (await kernel.run("x")).result == {"text/plain": "1"}


async def test_a_kernel_that_memory_ends_says_so() -> None:
    async with DockerNotebook({**CONFIG, "memory_limit": "400m"}) as box:
        kernel, other = await box.kernel(), await box.kernel("other")
        done = await kernel.run("x = bytearray(1 << 30)", timeout=60)
        assert done.verdict is Verdict.OOM, (done.verdict, done.error)
        assert kernel.death is Verdict.OOM
        assert (await other.run("1")).success
        await kernel.restart()
        assert (await kernel.run("2")).result == {"text/plain": "2"}


async def test_a_gateway_that_is_killed_is_started_again() -> None:
    async with DockerNotebook(CONFIG) as box:
        kernel = await box.kernel()
        (found,) = [port for port in await box.list_ports() if port.port == 8888]
        await box.execute_command(f"kill -9 {found.pid}")
        with anyio.fail_after(20):
            while kernel.death is None:
                await anyio.sleep(0.01)
        assert kernel.death is Verdict.INFRA
        assert "gateway" in kernel.death_reason
        await kernel.restart()
        assert (await kernel.run("1 + 1")).result == {"text/plain": "2"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["pause"], "paused"), (["kill"], "killed by somebody else"), (["rm", "-f"], "container")],
    ids=["pause", "kill", "remove"],
)
async def test_a_cell_ends_at_once_with_what_was_done_to_its_container(
    words: list[str], reason: str
) -> None:
    box = DockerNotebook(CONFIG)
    await box.start()
    kernel = await box.kernel()
    begun = anyio.Event()

    async def run() -> None:
        with anyio.fail_after(20), pytest.raises(SandboxLostError, match=reason):
            async for event in kernel.run_stream("print('begun', flush=True)\nwhile True: pass"):
                if event.type == "stream":
                    begun.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await begun.wait()
        await anyio.to_thread.run_sync(docker, *words, str(box.container.id))
    assert box.status == SandboxStatus.ERROR
    await box.stop()


# --- from outside ---


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def test_nothing_is_published_unless_a_port_is_given() -> None:
    async with DockerNotebook(CONFIG) as box:
        shown = json.loads(docker("inspect", f"sandbox-{box.id}"))[0]
        assert not shown["HostConfig"]["PortBindings"]
        assert shown["HostConfig"]["NetworkMode"] == "none"
        environment = " ".join(shown["Config"].get("Env") or [])
        assert "TOKEN" not in environment


async def test_a_port_without_a_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="network"):
        async with DockerNotebook({**CONFIG, "port": 8888}):
            pass


async def test_a_published_gateway_wants_its_token() -> None:
    port = free_port()
    config = {**CONFIG, "port": port, "token": "let me in", "network_enabled": True}

    def ask(token: str | None) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/kernels")
        if token is not None:
            request.add_header("Authorization", f"token {token}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    async with DockerNotebook(config) as box:
        assert box.base_url == f"http://127.0.0.1:{port}"
        assert await anyio.to_thread.run_sync(ask, "let me in") == 200
        assert await anyio.to_thread.run_sync(ask, "let them in") in (401, 403)
        assert await anyio.to_thread.run_sync(ask, None) in (401, 403)
        assert (await (await box.kernel()).run("1")).result == {"text/plain": "1"}


# --- the image ---


async def test_an_image_without_the_gateway_is_told() -> None:
    with pytest.raises(SandboxStartError, match="lacks"):
        async with DockerNotebook({"image": IMAGE}):
            pass


async def test_a_build_that_fails_says_why_and_leaves_nothing() -> None:
    before = our_images()
    config = {**CONFIG, "base_image": WITHOUT_PYTHON}
    with pytest.raises(SandboxStartError, match="python3") as caught:
        async with DockerNotebook(config):
            pass
    assert "build the image" in str(caught.value)
    assert our_images() == before


async def test_a_build_tells_how_far_it_is_and_leaves_nothing_when_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = f"ms-enclave-notebook-base-{os.getpid()}"
    docker("build", "-q", "-t", base, "-", stdin=f"FROM {IMAGE}\nLABEL other=1\n".encode())
    try:
        before = our_images()
        caplog.set_level(logging.INFO, "ms_enclave")
        async with anyio.create_task_group() as group:

            async def build() -> None:
                async with DockerNotebook({**CONFIG, "base_image": base}):
                    raise AssertionError("it was built before it could be cancelled")

            group.start_soon(build)
            with anyio.fail_after(60):
                while "RUN set -e" not in caplog.text:
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        assert our_images() == before
    finally:
        docker("rmi", base)


async def test_a_folder_without_wheels_is_told(tmp_path: Path) -> None:
    config = {**CONFIG, "wheels": str(tmp_path), "base_image": WITHOUT_PYTHON}
    with pytest.raises(ConfigError, match="wheels"):
        async with DockerNotebook(config):
            pass


async def test_a_cancelled_start_leaves_nothing() -> None:
    for seconds in (0.05, 0.3, 0.8, 1.2):
        with anyio.move_on_after(seconds) as scope:
            async with DockerNotebook(CONFIG):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
    assert containers() == []
