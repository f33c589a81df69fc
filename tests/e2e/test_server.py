"""`ms-enclave server` as people start it: a process, used from here, and ended by a signal."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.errors import ServerUnreachableError
from ms_enclave.loop import on_loop
from ms_enclave.manager import HttpSandboxManager
from tests.e2e.test_cli import ROOT, command, complaint, enclave

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

KEY = "a key of the tests, long enough"
BOUND = 40.0
THOUSAND = 1000


class Server:
    """One that runs."""

    def __init__(self, child: subprocess.Popen[str], url: str) -> None:
        self.child = child
        self.url = url

    def manager(self) -> HttpSandboxManager:
        return HttpSandboxManager(base_url=self.url, api_key=KEY)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end; its exit code."""
        self.child.send_signal(number)
        return self.child.wait(BOUND)


@contextmanager
def started(folder: Path, *words: str, **environment: str) -> Generator[Server, None, None]:
    policy = folder / "policy.json"
    policy.write_text(json.dumps({"sandbox_types": ["subprocess"]}))
    line = command("server", "--port", "0", "--policy", str(policy), *words)
    with subprocess.Popen(
        line, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as child:
        assert child.stderr is not None
        try:
            said = child.stderr.readline()
            assert "serves at http://" in said, said + child.stderr.read()
            yield Server(child, said.split()[-1])
        finally:
            if child.poll() is None:
                child.kill()
            child.wait(BOUND)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with started(tmp_path, MS_ENCLAVE_API_KEY=KEY) as server:
        yield server


async def test_a_client_works_there_and_a_signal_ends_it_with_its_sandboxes(server: Server) -> None:
    manager = server.manager()
    await manager.start()
    box = await manager.get_sandbox(await manager.create_sandbox("subprocess"))
    assert box is not None
    assert (await box.run_code("print(6 * 7)")).stdout == "42\n"
    left = await box.start_command("echo $$; exec sleep 600")
    with anyio.fail_after(BOUND):
        assert await anyio.to_thread.run_sync(server.end) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(left.pid, 0)  # this box has no walls, so its pids are ours
    with pytest.raises(ServerUnreachableError):
        await box.execute_command("true")
    with pytest.raises(ServerUnreachableError):
        await manager.stop()  # the sandbox that it had made is known to nobody now


# The word that is looked for is put together late, so that whoever looks does not find himself.
SEARCH = """
import os, re, sys
pattern = re.compile(bytes([67, 65, 78, 65]) + b'RY-[0-9]{20}')
found = set()

def look(place, data):
    if pattern.search(data):
        found.add(place)

for process in filter(str.isdigit, os.listdir('/proc')):
    for name in ('environ', 'cmdline'):
        try:
            with open(f'/proc/{process}/{name}', 'rb') as file:
                look(name if int(process) == os.getpid() else f'{name} of another', file.read())
        except OSError:
            pass
memory = os.open('/proc/self/mem', os.O_RDONLY)
for line in open('/proc/self/maps'):
    words = line.split()
    if 'r' in words[1] and '[v' not in line:
        start, end = (int(word, 16) for word in words[0].split('-'))
        try:
            look('memory', os.pread(memory, min(end - start, 64 << 20), start))
        except OSError:
            pass
for top in sys.argv[1:]:
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            try:
                if os.path.isfile(path) and os.stat(path).st_size < 1 << 20:
                    with open(path, 'rb') as file:
                        look('a file', file.read())
            except OSError:
                pass
print(*sorted(found), sep=', ')
"""
EVERYWHERE = ("/tmp", "/run", "/etc", "/root", "/home", "/var", "/opt", "/srv", "/mnt", ".")


@pytest.mark.namespaces
async def test_no_sandbox_finds_a_secret_of_its_server(tmp_path: Path) -> None:
    """Its key, in its environment and in a file beside its policy; without walls both are found."""
    key = f"CANARY-{secrets.randbelow(10**20):020}"
    (tmp_path / "secret").write_text(key)
    policy = tmp_path / "both.json"
    policy.write_text(json.dumps({"sandbox_types": ["process", "subprocess"]}))
    found: dict[str, str] = {}
    with started(tmp_path, "--policy", str(policy), MS_ENCLAVE_API_KEY=key) as server:
        async with HttpSandboxManager(base_url=server.url, api_key=key) as manager:
            for kind, folders in (("process", EVERYWHERE), ("subprocess", [str(tmp_path)])):
                async with manager.sandbox(kind) as box:
                    result = await box.run_code(SEARCH, args=[*folders], timeout=60)
                    assert result.exit_code == 0, result.stderr
                    assert key not in result.model_dump_json()
                    assert all(
                        key not in row.model_dump_json() for row in await manager.list_sandboxes()
                    )
                    found[kind] = result.stdout.strip()
    assert found["process"] == ""
    assert {"environ of another", "a file"} <= set(found["subprocess"].split(", "))


async def test_what_it_has_used_is_given_back_while_it_runs(tmp_path: Path) -> None:
    """A command that ends at once does without a look for garbage; this one must not."""
    log = tmp_path / "garbage"
    code = (
        "import gc, os, sys; from ms_enclave.cli import run_cmd\n"
        f"log = os.open({str(log)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "gc.callbacks.append(lambda when, info: os.write(log, b'.'))\n"
        "sys.argv[0] = 'ms-enclave'; run_cmd()"
    )
    line = [sys.executable, "-c", code, "server", "--port", "0", "--log", "none"]
    with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr is not None
            url = child.stderr.readline().split()[-1]
            async with HttpSandboxManager(base_url=url) as manager:
                with anyio.fail_after(BOUND):
                    while not log.stat().st_size:
                        await manager.list_sandboxes()
        finally:
            child.terminate()
            child.wait(BOUND)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_calls_under_way_are_answered_before_it_ends(server: Server, number: int) -> None:
    answers: list[str] = []

    @on_loop
    async def go() -> None:
        manager = server.manager()
        await manager.start()
        box = await manager.get_sandbox(await manager.create_sandbox("subprocess"))
        assert box is not None
        line = "touch begun.{}; until [ -e enough ]; do sleep 0.02; done; echo done {}"

        async def call(index: int) -> None:
            answers.append((await box.execute_command(line.format(index, index))).stdout)

        with anyio.fail_after(2 * BOUND):
            async with anyio.create_task_group() as group:
                for index in range(5):
                    group.start_soon(call, index)
                for index in range(5):
                    while not await box.files.exists(f"begun.{index}"):
                        await anyio.sleep(0.02)
                folder = (await box.execute_command("pwd")).stdout.strip()
                ended = asyncio.ensure_future(anyio.to_thread.run_sync(server.end, number))
                while not await anyio.to_thread.run_sync(refuses, server.url):
                    await anyio.sleep(0.02)  # it takes nobody new any more, and is still there
                await anyio.sleep(0.5)  # several looks of a server that did not wait for them
                assert not ended.done()
                assert answers == []
                await anyio.Path(folder, "enough").touch()
            assert await ended == 0
        with pytest.raises(ServerUnreachableError):
            await manager.stop()

    await go()
    assert sorted(answers) == [f"done {index}\n" for index in range(5)]


def refuses(url: str) -> bool:
    """Whether nobody is let in there."""
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=BOUND).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_listens_elsewhere_with_a_key_or_where_it_is_told_to_be_open(
    host: str, tmp_path: Path
) -> None:
    done = enclave("server", "--port", "0", "--host", host, env={"MS_ENCLAVE_API_KEY": ""})
    assert done.returncode != 0
    assert "--api-key" in complaint(done)
    with started(tmp_path, "--host", host, "--insecure", MS_ENCLAVE_API_KEY="") as server:
        assert server.end() == 0


@contextmanager
def many_descriptors(wanted: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        pytest.skip(f"a process may have {hard} descriptors here: needs {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_thousand_connections_keep_nobody_out(server: Server) -> None:
    """Silent, half a request, and asking: whoever comes then is served."""
    host, port = server.url.removeprefix("http://").split(":")
    said: list[Any] = [b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"]
    with many_descriptors(2 * THOUSAND), ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=BOUND))
            for _ in range(THOUSAND)
        ]
        for index, one in enumerate(held):
            one.sendall(said[index % 3])
        for one in held[2::3]:
            assert one.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        async with server.manager() as manager, manager.sandbox("subprocess") as box:
            assert (await box.execute_command("echo served")).stdout == "served\n"
    assert await anyio.to_thread.run_sync(server.end) == 0
