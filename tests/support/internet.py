"""A small internet of the test's own: two network namespaces, one that plays a host, one the world.

`words_on_host` is the command line that runs a program there, as root; the program may then become
an ordinary user's. The world has public, private and metadata addresses, all with the same servers,
and writes down every packet that reaches it. Nothing of the machine's own network is touched.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ms_enclave.spawner import _calls as calls
from ms_enclave.spawner.rtnetlink import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["ADDRESSES", "CLOSED", "HOST", "METADATA", "NAME", "PUBLIC", "packets", "words_on_host"]

HOST, NEIGHBOUR = "203.0.113.2", "203.0.113.1"
"""The host's public address and its neighbour's, which is the world's."""
PUBLIC, METADATA = "198.51.100.7", "169.254.169.254"
CLOSED = (METADATA, "168.63.129.16", "10.1.2.3", "172.16.9.9", "192.168.5.5", "100.64.1.1")
"""Addresses of the world that no sandbox may reach."""
ADDRESSES = (NEIGHBOUR, PUBLIC, *CLOSED)
NAME = "example.test"
"""The only name there is; it is `PUBLIC`'s."""
_CONTROL_PORT = 7000


def packets() -> list[tuple[str, str]]:
    """Source and destination of every packet that reached the world so far. From the host."""
    with socket.create_connection((NEIGHBOUR, _CONTROL_PORT), timeout=5) as line:
        data = b""
        while part := line.recv(1 << 16):
            data += part
    return [(source, destination) for source, destination in json.loads(data)]


# --- the world ----------------------------------------------------------------------------------


def _world(host: socket.socket) -> None:
    """Serve until the host, at the other end of a socket, is gone."""
    host.recv(1)
    _build_world()
    seen: list[tuple[str, str]] = []
    watcher = threading.Thread(target=_watch, args=(seen,), daemon=True)
    threads = [watcher, *_servers(seen)]
    for thread in threads:
        thread.start()
    host.send(b"r")
    host.recv(1)


def _servers(seen: list[tuple[str, str]]) -> Iterator[threading.Thread]:
    def told(_: str) -> bytes:
        return json.dumps(seen).encode()

    def much(_: str) -> bytes:
        return bytes(range(256)) * (1 << 15)

    for port, answer in ((_CONTROL_PORT, told), (80, str.encode), (81, much)):
        yield threading.Thread(target=_serve, args=(port, answer), daemon=True)
    for address in ADDRESSES:
        yield threading.Thread(target=_echo, args=(address,), daemon=True)
        yield threading.Thread(target=_names, args=(address,), daemon=True)


def _watch(seen: list[tuple[str, str]]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as sniffer:
        while True:
            data, (link, _, kind, *_rest) = sniffer.recvfrom(1 << 16)
            if kind == socket.PACKET_OUTGOING or link == "lo" or data[0] >> 4 != 4:  # type: ignore[attr-defined]
                continue
            ports = struct.unpack_from("!HH", data, (data[0] & 15) * 4)
            if data[9] == socket.IPPROTO_TCP and _CONTROL_PORT in ports:
                continue
            seen.append((socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])))


def _serve(port: int, answer: Callable[[str], bytes]) -> None:
    with socket.create_server(("0.0.0.0", port)) as server:
        while True:
            line, _ = server.accept()
            with line:
                line.sendall(answer(line.getsockname()[0]))


def _echo(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 9))
        while True:
            data, place = server.recvfrom(1 << 16)
            server.sendto(data, place)


def _names(address: str) -> None:
    """A name server that knows one name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        while True:
            data, place = server.recvfrom(1 << 16)
            server.sendto(answer_to(data), place)


def answer_to(query: bytes) -> bytes:
    """What a name server says to a query."""
    end = query.index(b"\0", 12) + 5
    question = query[12:end]
    known = b"".join(bytes([len(part)]) + part.encode() for part in NAME.split(".")) + b"\0"
    code = 0 if question.startswith(known) else 3
    found = code == 0 and question[-4:-2] == b"\0\1"
    head = query[:2] + bytes([0x81, 0x80 | code]) + struct.pack("!HHHH", 1, found, 0, 0)
    if not found:
        return head + question
    return head + question + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(PUBLIC)


# --- the wires ----------------------------------------------------------------------------------


def words_on_host(words: Iterable[str], resolver: str) -> list[str]:
    """The command line that runs a program on the host; `resolver` is its name server."""
    start = "from tests.support import internet; internet.main()"
    return ["unshare", "--net", "--mount", sys.executable, "-c", start, resolver, *words]


def main() -> None:
    """Build it in the namespaces that this process has got, run the program, end as it does."""
    resolver, words = sys.argv[1], sys.argv[2:]
    ours, theirs = socket.socketpair()
    world = calls.clone(calls.CLONE_NEWNET)
    if world == 0:
        ours.close()
        _world(theirs)
        os._exit(0)
    theirs.close()
    _build_host(world)
    ours.send(b"g")
    if ours.recv(1) != b"r":
        raise ConnectionError("the world has not come to be")
    _show_to_host(resolver)
    code = subprocess.run(words, check=False).returncode
    ours.close()
    os.waitpid(world, 0)
    sys.exit(code)


def _build_host(world: int) -> None:
    space = os.open(f"/proc/{world}/ns/net", os.O_RDONLY)
    control = Control()
    _raise(control, "lo", 65536)
    control.add_pair("eth0", "eth0", space, 1500)
    link = _raise(control, "eth0", 1500)
    control.add_address(link, HOST)
    control.add_route(f"{NEIGHBOUR}/32", link)
    control.add_route("0.0.0.0/0", link, gateway=NEIGHBOUR)
    control.close()
    os.close(space)


def _build_world() -> None:
    control = Control()
    _raise(control, "lo", 65536)
    link = _raise(control, "eth0", 1500)
    for address in ADDRESSES:
        control.add_address(link, address)
    control.add_route(f"{HOST}/32", link)
    control.close()


def _raise(control: Control, name: str, mtu: int) -> int:
    link = control.find(name)
    assert link is not None, name
    control.raise_link(link, mtu=mtu, forward=False)
    return link


def _show_to_host(resolver: str) -> None:
    """In mounts of this process alone: the name server, and a tun device that all may open.

    So the device is on most machines; a test must not depend on this one.
    """
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
    scratch = tempfile.mkdtemp()
    calls.mount("tmpfs", scratch, "tmpfs", 0)
    Path(scratch, "resolv.conf").write_text(f"nameserver {resolver}\n")
    calls.mount(f"{scratch}/resolv.conf", "/etc/resolv.conf", None, calls.MS_BIND)
    os.mknod(f"{scratch}/tun", stat.S_IFCHR | 0o666, os.makedev(10, 200))
    os.chmod(f"{scratch}/tun", 0o666)
    calls.mount(f"{scratch}/tun", "/dev/net/tun", None, calls.MS_BIND)
    calls.umount(scratch)
    os.rmdir(scratch)
    if resolver.startswith("127."):
        threading.Thread(target=_names, args=(resolver,), daemon=True).start()
