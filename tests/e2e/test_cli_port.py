"""`ms-enclave port`, from outside: what connects here reaches the server in the sandbox."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_cli import ROOT, command, complaint, enclave

if TYPE_CHECKING:
    from collections.abc import Generator

SERVER = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    while True:
        connection = listening.accept()[0]
        data = b""
        while piece := connection.recv(65536):
            data += piece
            if data == b"end":
                raise SystemExit(5)
        connection.sendall(data[::-1])
        connection.close()
"""


@pytest.fixture
def free() -> int:
    """A port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(*words: str, sandbox: str = "subprocess") -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command("port", "--type", sandbox, *words),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)  # as a person would; it has something to undo
            child.wait(20)


def _line(child: subprocess.Popen[str], stream: str) -> str:
    file = child.stdout if stream == "stdout" else child.stderr
    assert file is not None
    return file.readline()


def _exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        return answer


@pytest.mark.namespaces
def test_a_port_of_the_sandbox_is_one_of_ours() -> None:
    code = SERVER.replace("('127.0.0.1', 0)", "").replace('"127.0.0.1", 0', '"127.0.0.1", 8000')
    with serving("-p", "0:8000", "--", "python3", "-c", code, sandbox="process") as child:
        assert _line(child, "stdout") == "8000\n"
        found = re.fullmatch(
            r"127\.0\.0\.1:(\d+) is port 8000 of the sandbox\n", _line(child, "stderr")
        )
        assert found is not None
        here = int(found[1])
        data = bytes(range(256)) * 10_000
        assert _exchange(here, data) == data[::-1]
        assert _exchange(here, b"again") == b"niaga"
        assert _exchange(here, b"end") == b""
        assert child.wait(20) == 5


def test_who_connects_before_anybody_listens_is_refused(free: int) -> None:
    program = (
        "import sys; print('ready', flush=True); sys.stdin.read(); import time; time.sleep(60)"
    )
    with serving("-p", f"0:{free}", "--", sys.executable, "-c", program) as child:
        assert _line(child, "stdout") == "ready\n"
        here = int(_line(child, "stderr").split()[0].rpartition(":")[2])
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", here), timeout=20) as client,
        ):
            client.recv(1)


def test_an_interrupt_ends_the_server_and_the_sandbox(free: int) -> None:
    program = "print('ready', flush=True); import time; time.sleep(60)"
    with serving("-p", f"0:{free}", "--", sys.executable, "-c", program) as child:
        assert _line(child, "stdout") == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130


def test_a_port_that_is_taken_is_said_before_anything_is_made(free: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = enclave("port", "--type", "subprocess", "-p", f"{port}:{free}", "--", "true")
    assert done.returncode == 125
    assert f"127.0.0.1:{port}: Address already in use" in complaint(done)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "80"], "no command behind --"),
        (["--", "true"], "no port"),
        (["-p", "x:80", "--", "true"], "is not [HERE:]INSIDE"),
        (["-p", "80:0", "--", "true"], "is not [HERE:]INSIDE"),
        (["-p", "65536", "--", "true"], "is not [HERE:]INSIDE"),
    ],
    ids=["no-command", "no-port", "no-number", "inside-zero", "too-large"],
)
def test_what_cannot_be_done_is_said(words: list[str], said: str) -> None:
    done = enclave("port", "--type", "subprocess", *words)
    assert done.returncode == 125
    assert said in complaint(done)


def test_without_anything_it_explains_itself() -> None:
    done = enclave("port")
    assert done.returncode == 0
    assert b"--publish" in done.stdout
