"""A network namespace goes to a second sandbox only if nothing of the first can be seen in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from ms_enclave.manager.local_manager import LocalSandboxManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.namespaces

RUNS = 12

# The cookie names a namespace for as long as the kernel runs: no other one ever has it.
LOOK = """
import json, socket
looks = []
for name in ('dev', 'snmp', 'snmp6', 'sockstat6', 'ip6_flowlabel', 'unix', 'udp'):
    try:
        looks.append(open(f'/proc/net/{name}').read())
    except FileNotFoundError:
        pass
with socket.socket() as any_socket:
    cookie = any_socket.getsockopt(socket.SOL_SOCKET, 71, 8)
print(json.dumps([cookie.hex(), looks]))
"""

TRACES = {
    "a datagram": """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))
""",
    "a datagram to nobody's address": """
import socket
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('198.51.100.1', 9))
except OSError:
    pass
""",
    "a datagram by IPv6": """
import socket
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', ('::1', 9))
""",
    "a connection that is remembered": """
import socket
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
server.accept()[0].close()
client.recv(1)
client.close()
""",
    "a label for flows": """
import socket, struct
kept = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
request = bytes(15) + b'\\1' + struct.pack('!I', 7) + struct.pack('=BBHHHI', 0, 1, 1, 60, 60, 0)
kept.setsockopt(socket.IPPROTO_IPV6, 32, request)
""",
}


@pytest.fixture
async def manager() -> AsyncIterator[LocalSandboxManager]:
    async with LocalSandboxManager() as manager:
        yield manager


def parsed(text: str) -> tuple[str, list[str]]:
    cookie, looks = json.loads(text)
    return cookie, looks


async def test_one_that_nobody_has_used_is_used_again(manager: LocalSandboxManager) -> None:
    seen = [parsed((await manager.run_code(LOOK)).stdout)[0] for _ in range(RUNS)]
    assert len(set(seen)) < RUNS


@pytest.mark.parametrize("trace", TRACES)
async def test_one_with_a_trace_of_its_user_is_not(
    manager: LocalSandboxManager, trace: str
) -> None:
    _, untouched = parsed((await manager.run_code(LOOK)).stdout)
    cookie, _ = parsed((await manager.run_code(LOOK + TRACES[trace])).stdout)
    for _ in range(RUNS):
        later, looks = parsed((await manager.run_code(LOOK)).stdout)
        assert later != cookie
        assert looks == untouched


@pytest.mark.parametrize("trace", TRACES)
async def test_the_trace_would_be_seen(manager: LocalSandboxManager, trace: str) -> None:
    async with manager.sandbox("process") as sandbox:
        before = parsed((await sandbox.run_code(LOOK)).stdout)
        assert (await sandbox.run_code(TRACES[trace])).verdict == "ok"
        after = parsed((await sandbox.run_code(LOOK)).stdout)
    assert before[0] == after[0]
    assert before[1] != after[1]
