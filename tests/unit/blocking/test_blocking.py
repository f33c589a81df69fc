"""The blocking twin is generated, complete, and does one call each."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave import blocking
from ms_enclave.boxes.base import Sandbox
from ms_enclave.boxes.files import Files
from ms_enclave.errors import (
    ConfigError,
    PoolEmptyError,
    PortRefusedError,
    SandboxNotFoundError,
)
from ms_enclave.manager.base import SandboxManager
from ms_enclave.manager.http_manager import HttpSandboxManager
from ms_enclave.manager.local_manager import LocalSandboxManager
from tests.support.subprocess_box import install
from tests.unit.manager.nothing import Nothing, installed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.manager.nothing import Script

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def script() -> Iterator[Script]:
    with installed() as script:
        yield script


def test_it_is_what_the_script_writes() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_blocking.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


PAIRS = [
    (Files, blocking.Files, set[str]()),
    (
        Sandbox,
        blocking.Sandbox,
        {
            "adopt",
            "leave_owner",
            "release_owner",
            "diagnose",
            "get_execution_context",
            "find_all",
            "remove_found",
            "clear_cache",
        },
    ),
    (SandboxManager, blocking.SandboxManager, set[str]()),
    (LocalSandboxManager, blocking.LocalSandboxManager, set[str]()),
    (HttpSandboxManager, blocking.HttpSandboxManager, set[str]()),
]


@pytest.mark.parametrize(("ours", "twin", "absent"), PAIRS)
def test_it_has_every_method_with_the_same_parameters(
    ours: type, twin: type, absent: set[str]
) -> None:
    names = {name for name, _ in inspect.getmembers(ours, callable) if not name.startswith("_")}
    assert names - absent <= set(dir(twin)) | {"config_class"}
    for name in names - absent - {"config_class"}:
        mine, its = (inspect.signature(getattr(kind, name)) for kind in (ours, twin))
        assert list(mine.parameters) == list(its.parameters), name
        assert not inspect.iscoroutinefunction(getattr(twin, name))
        assert inspect.getdoc(getattr(twin, name))


def test_a_manager_is_used_without_async(script: Script) -> None:
    with blocking.LocalSandboxManager(pool_size=1) as manager:
        assert manager.config.pool_size == 1
        with manager.sandbox("nothing") as box:
            assert isinstance(box, blocking.Sandbox)
            assert box.status == "running"
            assert manager.get_sandbox_info(box.id) == box.get_info()
            found = manager.get_sandbox(box.id)
            assert found is not None
            assert found.id == box.id
        assert manager.get_sandbox(box.id) is None
        with pytest.raises(SandboxNotFoundError):
            manager.execute_tool("unknown", "x")
        with pytest.raises(PoolEmptyError), manager.borrow():
            pass
        manager.initialize_pool(sandbox_type="nothing")
        with manager.borrow(timeout=5) as box:
            assert box.sandbox_type == "nothing"
        assert manager.get_stats()["pool_size"] == 1
    assert not script.open_now


def test_a_block_that_fails_ends_the_sandbox_and_goes_on_failing(script: Script) -> None:
    with blocking.LocalSandboxManager() as manager:
        with pytest.raises(KeyError), manager.sandbox("nothing"):
            raise KeyError
        assert manager.list_sandboxes() == []


def test_a_sandbox_and_a_manager_come_from_factories_too(script: Script) -> None:
    with blocking.SandboxFactory.create_sandbox("nothing", {"timeout": 3}) as box:
        assert box.config.timeout == 3
    assert "nothing" in blocking.SandboxFactory.get_available_types()
    with blocking.SandboxManagerFactory.create_manager("local") as manager:
        assert manager.list_sandboxes() == []
    assert "local" in blocking.SandboxManagerFactory.get_registered_types()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c_during_a_creation_leaves_nothing(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = threading.main_thread().ident
    assert main is not None

    async def interrupt(self: Nothing, stack: Any) -> None:
        signal.pthread_kill(main, signal.SIGINT)
        await opening(self, stack)

    opening = Nothing._open
    script.opening_takes = 30
    monkeypatch.setattr(Nothing, "_open", interrupt)
    with blocking.LocalSandboxManager() as manager:
        with pytest.raises(KeyboardInterrupt):
            manager.create_sandbox("nothing")
        assert manager.list_sandboxes() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({}, "No code provided"), ({"code": "1", "command": "true"}, "not both")],
)
def test_run_wants_one_thing_to_run(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        blocking.run(**arguments)


def test_run_is_one_line() -> None:
    install()
    result = blocking.run(
        "import sys; print(open('f').read() + sys.stdin.read())",
        sandbox_type="subprocess",
        stdin="in",
        files={"f": "file and "},
    )
    assert (result.stdout, result.exit_code) == ("file and in\n", 0)
    assert blocking.run(command=["sh", "-c", "exit 5"], sandbox_type="subprocess").exit_code == 5


def test_files_are_iterated_both_ways() -> None:
    install()
    with (
        blocking.LocalSandboxManager() as manager,
        manager.sandbox("subprocess") as box,
    ):
        sent = box.files.write("big", (b"x" * 70_000 for _ in range(5)))
        assert sent == 350_000
        received = 0
        for piece in box.files.read_stream("big"):
            received += len(piece)
        assert received == 350_000
        for _ in box.files.read_stream("big"):
            break
        assert [entry.name for entry in box.files.list()] == ["big"]


def test_a_sandbox_does_everything_without_async(tmp_path: Path) -> None:
    install()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("from the host\n")
    with blocking.SandboxFactory.create_sandbox(
        "subprocess", {"tools_config": ["shell_executor"]}
    ) as box:
        home = box.config.working_dir
        assert box.execute_command("cat", stdin=b"in").stdout == "in"
        assert box.run_code("import sys; print(sys.argv[1])", args=["x"]).stdout == "x\n"
        assert box.execute_tool("shell_executor", {"command": "echo hi"}).output is not None
        assert box.list_tools() == list(box.get_available_tools()) == ["shell_executor"]
        assert box.get_tool("shell_executor") is not None
        box.put_dir(tmp_path / "in", "put")
        box.put_file(f"{home}/put/b", "text")
        assert box.get_file("put/a") == b"from the host\n"
        archive = b"".join(box.get_archive("put"))
        box.put_archive("again", iter([archive[:700], archive[700:]]))
        box.get_dir("again", tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").rglob("?")) == ["a", "b"]
        assert box.capabilities >= {"python", "ports", "watch"}
        assert box.isolation.tier == "none"
        assert box.created_at <= box.updated_at
        assert (box.metadata, box.client, box.container) == ({}, None, None)
        box.stop()
        box.cleanup()
        assert box.status == "stopped"


_ECHO = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listening:
    with open("port", "w") as file:
        file.write(str(listening.getsockname()[1]))
    connection = listening.accept()[0]
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()
"""


def test_commands_and_shells_are_used_without_async() -> None:
    install()
    with blocking.SandboxFactory.create_sandbox("subprocess") as box:
        command = box.start_command(["cat"], stdin=True, tag="echo")
        command.write("one\n")
        events = command.events()
        assert next(events).data == b"one\n"
        found = box.get_command(command.id)
        assert isinstance(found, blocking.Command)
        found.close_stdin()
        assert list(events) == []
        assert (found.wait(10).stdout, found.returncode, found.tag) == ("one\n", 0, "echo")
        assert [info.id for info in box.list_commands()] == [command.id]
        shell = box.shell("main")
        shell.run("cd /; X=1")
        assert shell.run("pwd; echo $X").stdout == "/\n1\n"
        assert shell.name == "main"
        shell.close()


def test_a_port_is_used_without_async() -> None:
    install()
    with blocking.SandboxFactory.create_sandbox("subprocess") as box:
        server = threading.Thread(target=box.run_code, args=[_ECHO])
        server.start()
        while not box.files.exists("port") or not box.files.read("port"):
            pass
        port = int(box.files.read("port"))
        assert port in [found.port for found in box.list_ports()]
        with box.connect(port) as stream:
            stream.send(b"there and back")
            stream.send_eof()
            assert stream.receive(5) == b"there"
            assert stream.receive() == b" and back"
            with pytest.raises(anyio.EndOfStream):
                stream.receive()
        server.join()
        with pytest.raises(PortRefusedError):
            box.connect(port)


def test_files_do_everything_without_async() -> None:
    install()
    with blocking.SandboxFactory.create_sandbox("subprocess") as box:
        files = box.files
        files.mkdir("d/e")
        files.write("d/f", "one\ntwo\n")
        assert files.exists("d/f")
        assert files.stat("d/f").size == 8
        assert files.read("d/f", offset=4) == b"two\n"
        assert files.replace("d/f", "two", "three") == 1
        assert files.read_text("d/f") == "one\nthree\n"
        assert [match.line for match in files.search("thr", "d")] == [2]
        for event in files.watch("d"):
            if event.type == "watching":
                files.write("d/new", "")
            else:
                assert (event.type, event.path) == ("created", "d/new")
                break
        files.move("d/f", "g")
        files.remove("d", recursive=True)
        assert [entry.name for entry in files.list()] == ["g"]


def test_a_manager_does_everything_without_async(script: Script, tmp_path: Path) -> None:
    install()
    manager = blocking.LocalSandboxManager(clock=None)
    manager.start()
    made = manager.create_sandbox("subprocess", {"tools_config": ["shell_executor"]})
    assert set(manager.get_sandbox_tools(made)) == {"shell_executor"}
    (tmp_path / "a").write_text("a")
    manager.put_dir(made, tmp_path, "put")
    found = manager.get_sandbox(made)
    assert found is not None
    manager.put_archive(made, "again", b"".join(found.get_archive("put")))
    assert manager.execute_tool(made, "shell_executor", {"command": "cat put/a"}).success
    manager.renew(made, 60)
    assert manager.cleanup_expired() == []
    assert manager.stop_sandbox(made)
    assert manager.get_sandbox("none") is None
    manager.initialize_pool(1, "nothing")
    manager.cleanup_all_sandboxes()
    assert not manager.delete_sandbox(made)
    manager.stop()
