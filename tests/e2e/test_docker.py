"""Containers of a real engine: what people bring works, walls stand, and nothing is ever left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from ms_enclave.boxes import DockerSandbox
from ms_enclave.errors import (
    CapabilityError,
    ConfigError,
    EngineUnavailableError,
    SandboxLostError,
    SandboxStartError,
)
from ms_enclave.model import SandboxStatus, Verdict
from tests.support.engine import IMAGE
from tests.support.own_engine import distant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.docker


def docker(*words: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, check=True)
    return done.stdout.decode().strip()


def containers(pid: int | None = None) -> list[str]:
    """The containers that a process has made, also those that do not run."""
    rows = docker("ps", "-aq", "--filter", "label=ms-enclave.owner").split()
    found = []
    for row in rows:
        with contextlib.suppress(subprocess.CalledProcessError):  # gone since
            shown = docker(
                "inspect", row, "--format", '{{index .Config.Labels "ms-enclave.owner"}}'
            )
            if f":{pid or os.getpid()}:" in shown:
                found.append(row)
    return found


@pytest.fixture(autouse=True)
def no_container_is_left() -> Iterator[None]:
    assert containers() == []
    yield
    assert containers() == []


async def exec_in(box: DockerSandbox, line: str, **options: Any) -> str:
    result = await box.execute_command(line, timeout=60, **options)
    assert result.success, (result.stdout, result.stderr, result.error)
    return result.stdout


# --- what people bring ---


async def test_an_image_with_a_project_that_root_owns_works_as_it_did(built: str) -> None:
    """An editable install into a root-owned folder, and a local package, as in benchmarks."""
    async with DockerSandbox({"image": built, "working_dir": "/testbed"}) as box:
        assert await exec_in(box, "cat kept.txt") == "kept\n"
        await exec_in(box, "touch new && chown 1234:1234 new")
        await exec_in(box, "python3 -m pip install -q --no-build-isolation --no-deps -e .")
        assert await exec_in(box, "cd / && python3 -c 'import brought; print(brought.answer)'") == (
            "42\n"
        )
        await exec_in(box, "cd /opt && apt-get install -y ./local.deb")
        assert await exec_in(box, "cat /opt/from-package") == "packaged\n"


async def test_strict_refuses_the_same_with_words(built: str) -> None:
    async with DockerSandbox({"image": built, "hardening": "strict"}) as box:
        result = await box.execute_command("touch /testbed/new")
        assert "read-only file system" in result.stderr.lower()
        refused = await box.execute_command("cd /opt && apt-get install -y ./local.deb")
        assert refused.exit_code != 0
        assert "are you root?" in refused.stderr
        shown = await exec_in(box, "id -u; grep CapBnd /proc/self/status; cat /proc/kallsyms")
        number, bounding = shown.split("\n")[:2]
        assert 20_000 <= int(number) < 60_000
        assert bounding.split()[1] == "0" * 16
        assert len(shown.split("\n")) == 3
        await box.files.write("mine", "yes")
        assert await exec_in(box, "cat mine") == "yes"
        with pytest.raises(CapabilityError, match="user"):
            await box.execute_command("id", user="root")


async def test_it_runs_as_the_user_that_the_config_says() -> None:
    async with DockerSandbox({"user": "1000:1000"}) as box:
        assert await exec_in(box, "id -u; touch it; stat -c %u it") == "1000\n1000\n"
        with pytest.raises(CapabilityError, match="as another"):
            await box.execute_command("id", user="0")


async def test_the_command_of_the_config_runs_in_the_background() -> None:
    config = {"command": ["sh", "-c", "echo up; exec sleep 600"]}
    async with DockerSandbox(config) as box:
        (known,) = await box.list_commands()
        assert known.tag == "command"
        command = await box.get_command(known.id)
        with anyio.fail_after(10):
            async for event in command.events():
                assert event.data == b"up\n"
                break
        assert command.returncode is None


async def test_a_capability_is_had_by_asking_for_it() -> None:
    look = "grep CapEff /proc/self/status"
    async with DockerSandbox() as box:
        plain = int((await exec_in(box, look)).split()[1], 16)
    async with DockerSandbox({"cap_add": ["NET_RAW"]}) as box:
        assert int((await exec_in(box, look)).split()[1], 16) == plain | 1 << 13


async def test_volumes_and_folders_in_memory(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from the host")
    config = {
        "volumes": {str(tmp_path): {"bind": "/data", "mode": "ro"}},
        "tmpfs": {"/scratch": "size=1m"},
        "read_only": True,
    }
    async with DockerSandbox(config) as box:
        assert await exec_in(box, "cat /data/given") == "from the host"
        assert (await box.execute_command("touch /data/new")).exit_code != 0
        assert (await box.execute_command("touch /usr/new")).exit_code != 0
        await exec_in(box, "touch /scratch/new ./new")


async def test_a_port_can_be_published() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {"network_enabled": True, "ports": {"8000/tcp": port}}
    async with DockerSandbox(config) as box:
        await box.start_command(["python3", "-m", "http.server", "8000"])
        with anyio.fail_after(20):
            while True:
                try:
                    stream = await anyio.connect_tcp("127.0.0.1", port)
                    async with stream:
                        await stream.send(b"GET / HTTP/1.0\r\n\r\n")
                        if (await stream.receive()).startswith(b"HTTP/1.0 200"):
                            break
                except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
                    pass
                await anyio.sleep(0.1)
        other = DockerSandbox(config)
        with pytest.raises(SandboxStartError, match=r"port is already allocated|already in use"):
            await other.start()


async def test_it_has_no_network_of_itself() -> None:
    async with DockerSandbox() as box:
        assert await exec_in(box, "ls /sys/class/net") == "lo\n"
        assert "network" not in box.capabilities


@pytest.mark.parametrize(
    "config", [{}, {"user": "nobody"}, {"read_only": True}, {"hardening": "strict"}]
)
async def test_it_knows_itself_by_name_without_a_network(config: dict[str, Any]) -> None:
    code = (
        "import socket\n"
        "for address, family in (('127.0.0.1', socket.AF_INET), ('::1', socket.AF_INET6)):\n"
        "    listening = socket.create_server((address, 0), family=family)\n"
        "    socket.create_connection(('localhost', listening.getsockname()[1])).close()\n"
        "print(socket.gethostbyname('other.test'))"
    )
    given = {} if config.get("read_only") or config.get("hardening") else {"other.test": "10.1.2.3"}
    async with DockerSandbox({**config, "extra_hosts": given}) as box:
        result = await box.run_code(code)
    assert (result.stdout, result.stderr) == ("10.1.2.3\n", "") if given else ("", result.stderr)
    assert given or "gaierror" in result.stderr


async def test_a_guard_that_is_not_there_is_missed() -> None:
    async with DockerSandbox({"require": ["seccomp", "no_new_privs"]}):
        pass
    with pytest.raises(RuntimeError, match="read_only_root"):
        await DockerSandbox({"require": ["read_only_root"]}).start()


async def test_a_program_killed_for_its_memory_is_out_of_memory_and_no_other() -> None:
    async with DockerSandbox({"memory_limit": "64m"}) as box:
        result = await box.run_code("x = bytearray(1 << 30)")
        assert result.verdict == Verdict.OOM
        result = await box.execute_command("kill -9 $$")
        assert result.verdict == Verdict.SIGNAL


async def test_code_inside_sees_nothing_of_the_guest() -> None:
    async with DockerSandbox() as box:
        code = "import sys; print([n for n in sys.modules if 'guest' in n]); import guest"
        result = await box.run_code(code)
        assert result.stdout == "[]\n"
        assert "No module named 'guest'" in result.stderr
        kernel = await box.kernel()
        done = await kernel.run("import guest")
        assert done.error is not None
        assert "No module named 'guest'" in done.error.value


REACH = """
import os, sys
def opens(path, flags):
    try:
        os.close(os.open(path, flags))
    except PermissionError:
        return False
    return True
who = sys.argv[1]
print(opens(f"/proc/{who}/environ", os.O_RDONLY), opens(f"/proc/{who}/mem", os.O_RDWR))
"""
OTHER = """
import subprocess, sys
child = subprocess.Popen(["sleep", "600"])
sys.argv = ["-c", str(child.pid)]
"""


async def test_a_program_of_root_cannot_answer_in_the_guests_place() -> None:
    async with DockerSandbox() as box:
        assert (await box.run_code(REACH, args=["1"])).stdout == "False False\n"
        assert (await box.run_code(OTHER + REACH)).stdout == "True True\n"  # what is like itself
        kernel = await box.kernel()
        done = await kernel.run("open('/proc/self/mem', 'r+b').close(); print('own')")
        assert done.stdout == "own\n"


# --- what cannot be ---


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        ({"image": "ms-enclave-no-such-image", "pull": "never"}, SandboxStartError,
         "No such image: ms-enclave-no-such-image"),
        ({"volumes": {"/no/such/folder": {"bind": "/x", "mode": "ro"}}}, ConfigError,
         "bind source path does not exist"),
        ({"network_enabled": True, "network": "no-such-network"}, ConfigError,
         "network no-such-network not found"),
        ({"runtime": "no-such-runtime"}, ConfigError, "no-such-runtime"),
        ({"user": "nobody-knows"}, ConfigError, "unable to find user nobody-knows"),
        ({"pull": "never", "platform": "linux/s390x"}, SandboxStartError, "not for linux/s390x"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_said_and_leaves_nothing(
    config: dict[str, Any], kind: type[Exception], words: str
) -> None:
    box = DockerSandbox(config)
    with pytest.raises(kind, match=words):
        await box.start()
    assert box.status == SandboxStatus.ERROR


async def test_a_taken_name_is_refused_and_its_owner_lives_on() -> None:
    async with DockerSandbox(sandbox_id="taken") as box:
        with pytest.raises(SandboxStartError, match="already in use"):
            await DockerSandbox(sandbox_id="taken").start()
        await exec_in(box, "true")


@pytest.mark.parametrize(
    ("where", "remedy"),
    [("unix:///no/such/docker.sock", "systemctl"), ("tcp://127.0.0.1:1", "DOCKER_HOST")],
)
async def test_an_engine_that_is_not_there_is_said(
    where: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", where)
    with pytest.raises(EngineUnavailableError, match=remedy):
        await DockerSandbox().start()


# --- how it is reached ---


async def test_calls_go_past_an_engine_of_this_machine() -> None:
    async with DockerSandbox() as box:
        assert box.metadata["channel"] == "direct"
        await box.files.as_user("nobody").write("/tmp/theirs", b"x" * 1_000_000)
        assert await exec_in(box, "stat -c '%U %s' /tmp/theirs") == "nobody 1000000\n"


@pytest.mark.parametrize("named", ["host", "context"])
async def test_calls_go_through_an_engine_of_another_machine(
    named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    async with distant(here.removeprefix("unix://")) as url:
        with monkeypatch.context() as patched:
            if named == "host":
                patched.setenv("DOCKER_HOST", url)
            else:
                patched.delenv("DOCKER_HOST", raising=False)
                patched.setenv("HOME", str(tmp_path))
                words = ("context", "create", "elsewhere", "--docker", f"host={url}")
                await anyio.to_thread.run_sync(docker, *words)
                await anyio.to_thread.run_sync(docker, "context", "use", "elsewhere")
            async with DockerSandbox() as box:
                assert box.metadata["channel"] == "engine"
                assert await exec_in(box, "echo there") == "there\n"
                await box.files.as_user("nobody").write("/tmp/theirs", b"x" * 1_000_000)
                await anyio.to_thread.run_sync(docker, "kill", str(box.container.id))
                with pytest.raises(SandboxLostError, match="killed by somebody else"):
                    await box.execute_command("sleep 60")


# --- nothing is left ---


@pytest.mark.parametrize("seconds", [0.005, 0.03, 0.1, 0.2, 0.3])
async def test_a_start_that_was_cancelled_leaves_no_container(seconds: float) -> None:
    box = DockerSandbox()
    with anyio.move_on_after(seconds):
        await box.start()
    await box.stop()
    assert await anyio.to_thread.run_sync(containers) == []


@pytest.mark.slow
async def test_many_starts_of_which_some_are_cancelled() -> None:
    async def one(number: int) -> None:
        with anyio.move_on_after(0.1 * number if number % 3 == 0 else 100):
            async with DockerSandbox() as box:
                assert await exec_in(box, f"echo {number}") == f"{number}\n"

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(one, number)


async def test_a_container_that_somebody_else_removes_is_lost() -> None:
    box = DockerSandbox(sandbox_id="removed")
    await box.start()
    await anyio.to_thread.run_sync(docker, "rm", "-f", "sandbox-removed")
    with pytest.raises(SandboxLostError, match="container"):
        await box.execute_command("true")
    assert box.status == SandboxStatus.ERROR
    await box.stop()
    assert box.status == SandboxStatus.STOPPED


async def test_a_container_that_somebody_pauses_is_lost_and_removed() -> None:
    box = DockerSandbox(sandbox_id="paused")
    await box.start()
    await anyio.to_thread.run_sync(docker, "pause", "sandbox-paused")
    with pytest.raises(SandboxLostError, match="paused"):
        await box.execute_command("true", timeout=60)
    await box.stop()


async def test_a_loss_is_known_without_a_call() -> None:
    box = DockerSandbox(sandbox_id="killed")
    await box.start()
    await anyio.to_thread.run_sync(docker, "kill", "sandbox-killed")
    with anyio.fail_after(10):
        while box.status == SandboxStatus.RUNNING:
            await anyio.sleep(0.02)
    assert "killed by somebody else (signal 9)" in box.get_info().metadata["error"]
    await box.stop()


@pytest.mark.parametrize(("word", "reason"), [("pause", "paused"), ("kill", "killed")])
async def test_a_call_ends_at_once_with_what_was_done_to_its_container(
    word: str, reason: str
) -> None:
    box = DockerSandbox()
    await box.start()
    async with anyio.create_task_group() as group:

        async def call() -> None:
            with anyio.fail_after(20), pytest.raises(SandboxLostError, match=reason):
                await box.execute_command("sleep 600")

        group.start_soon(call)
        await anyio.to_thread.run_sync(docker, word, str(box.container.id))
    await box.stop()


async def test_a_container_is_kept_where_that_is_asked_for() -> None:
    async with DockerSandbox({"auto_remove": False}, sandbox_id="kept") as box:
        await box.files.write("/root/note", "still here")
    state = await anyio.to_thread.run_sync(
        docker, "inspect", "sandbox-kept", "--format", "{{.State.Running}}"
    )
    assert state == "false"
    await anyio.to_thread.run_sync(docker, "rm", "-f", "sandbox-kept")


OWNER = """
import asyncio, sys
from ms_enclave.manager import LocalSandboxManager

async def main():
    async with LocalSandboxManager() as manager:
        await manager.create_sandbox("docker")
        name = await manager.create_sandbox("docker")
        box = await manager.get_sandbox(name)
        await box.start_command("while :; do :; done")
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_manager_that_is_killed_leaves_no_container() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        assert len(containers(owner.pid)) == 2
        owner.send_signal(signal.SIGKILL)
    ended = time.monotonic()
    while containers(owner.pid):
        assert time.monotonic() - ended < 15, "a container outlives its manager"
        time.sleep(0.1)


KILLED_BEFORE_ITS_START = """
import os, signal
from ms_enclave.boxes import DockerSandbox, _docker_engine

async def die(self, container):
    os.kill(os.getpid(), signal.SIGKILL)

_docker_engine.Engine.start = die
import asyncio
asyncio.run(DockerSandbox({KEPT}, sandbox_id="left").start())
"""


def leave(**config: Any) -> int:
    """A container whose owner was killed between making and starting it; the owner's pid."""
    code = KILLED_BEFORE_ITS_START.replace("{KEPT}", repr(config))
    owner = subprocess.Popen([sys.executable, "-c", code])
    assert owner.wait(30) == -signal.SIGKILL
    assert len(containers(owner.pid)) == 1
    return owner.pid


def enclave(*words: str) -> str:
    code = "from ms_enclave.cli import run_cmd; run_cmd()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_what_a_killed_owner_left_unstarted_is_removed_by_the_next() -> None:
    owner = leave()
    enclave("run", "--type", "docker", "-c", "print(1)")
    assert containers(owner) == []


# --- images ---

SETUP = "from setuptools import setup; setup(name='brought', py_modules=['brought'])"
CONTROL = "Package: local\nVersion: 1\nArchitecture: all\nMaintainer: us\nDescription: a test\n"


@contextlib.contextmanager
def image_with(kind: str, *lines: str) -> Iterator[str]:
    """The base image as shell lines have changed it, without a network."""
    name = f"ms-enclave-{kind}-{os.getpid()}"
    made = docker("create", "--network=none", IMAGE, "sh", "-ec", "\n".join(lines))
    try:
        docker("start", "-a", made)
        docker("commit", made, name)
    finally:
        docker("rm", "-f", made)
    yield name
    docker("rmi", "-f", name)


@pytest.fixture(scope="module")
def built() -> Iterator[str]:
    """An image with a project and a local package."""
    lines = [
        "mkdir -p /testbed /tmp/pkg/DEBIAN /tmp/pkg/opt",
        "cd /testbed",
        "echo kept > kept.txt",
        "echo answer = 42 > brought.py",
        f"printf '%s' {json.dumps(SETUP)} > setup.py",
        "mkdir -p /etc && printf '[global]\\nbreak-system-packages = true\\n' > /etc/pip.conf",
        "echo packaged > /tmp/pkg/opt/from-package",
        f"printf '{CONTROL.encode('unicode_escape').decode()}' > /tmp/pkg/DEBIAN/control",
        "dpkg-deb -b /tmp/pkg /opt/local.deb >/dev/null",
    ]
    with image_with("test", *lines) as name:
        yield name
