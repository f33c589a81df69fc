"""What is inside is hostile: whatever it sends, the host says a typed error and goes on."""

from __future__ import annotations

import time

import pytest

from ms_enclave.boxes import base
from ms_enclave.errors import EnclaveError, SandboxLostError
from ms_enclave.model import SandboxStatus
from tests.support.subprocess_box import SubprocessSandbox

_SEND = """
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
"""

SILENT = _SEND + "sock.recv(1 << 20); sock.recv(1)"
GONE = "raise SystemExit(3)"
RANDOM = _SEND + "sock.sendall(os.urandom(1 << 16)); sock.recv(1 << 20); sock.recv(1)"
TEXT = _SEND + "sock.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n' * 100); sock.recv(1 << 20)"
ZEROS = _SEND + "sock.sendall(bytes(1 << 16)); sock.recv(1 << 20)"
HUGE = _SEND + "sock.sendall(b'\\xff' * 64); sock.recv(1 << 20)"
FLOOD = (
    _SEND
    + """
try:
    while True:
        sock.sendall(b'\\x7f' * (1 << 16))
except OSError:
    pass
"""
)


@pytest.mark.parametrize(
    "program",
    [GONE, RANDOM, TEXT, ZEROS, HUGE, FLOOD],
    ids=["gone", "random", "text", "zeros", "huge", "flood"],
)
async def test_a_guest_that_sends_garbage_is_a_lost_sandbox(program: str) -> None:
    box = SubprocessSandbox({"timeout": 20})
    box.program = program  # type: ignore[misc]
    began = time.monotonic()
    async with box:
        with pytest.raises(SandboxLostError):
            await box.files.read("x")
        assert box.status is SandboxStatus.ERROR
        assert box.metadata["error"]
        with pytest.raises(SandboxLostError):
            await box.execute_command("true")
    assert box.status is SandboxStatus.STOPPED
    assert time.monotonic() - began < 15


async def test_a_guest_that_never_answers_is_a_lost_sandbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "CONNECT_BOUND", 0.2)
    box = SubprocessSandbox()
    box.program = SILENT  # type: ignore[misc]
    async with box:
        with pytest.raises(EnclaveError):
            await box.files.read("x")


async def test_a_guest_that_dies_in_the_middle_is_a_lost_sandbox() -> None:
    async with SubprocessSandbox() as box:
        assert (await box.execute_command("echo hi")).stdout == "hi\n"
        with pytest.raises(SandboxLostError):
            # Between a program and its guest stands the program's supervisor.
            await box.execute_command("kill -KILL $(cut -d' ' -f4 /proc/$PPID/stat); sleep 1")
        assert box.status is SandboxStatus.ERROR
