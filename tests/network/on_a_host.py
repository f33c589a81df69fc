"""The network of a process sandbox, from the inside and from the host. Collected by name only:
`test_network.py` runs it on a host of its own (`tests.support.internet`)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.manager.local_manager import LocalSandboxManager
from tests.security.boxes import status_of
from tests.support.internet import CLOSED, HOST, METADATA, NAME, NEIGHBOUR, PUBLIC, packets

if TYPE_CHECKING:
    from collections.abc import Generator

HELPERS = ("pasta", "slirp4netns")

ASK = """
import json, socket, sys, time
from concurrent.futures import ThreadPoolExecutor
def ask(kind, host, port, link):
    begun = time.monotonic()
    try:
        with socket.socket(socket.AF_INET, getattr(socket, kind)) as line:
            line.settimeout(2)
            if link:
                line.setsockopt(socket.SOL_SOCKET, 25, b"eth0")  # SO_BINDTODEVICE
            line.connect((host, port))
            if kind == "SOCK_DGRAM":
                line.send(b"hello")
            said = line.recv(100).decode()
    except OSError as error:
        said = type(error).__name__ + ": " + str(error)
    return said, time.monotonic() - begun
with ThreadPoolExecutor(20) as pool:
    print(json.dumps(list(pool.map(lambda question: ask(*question), json.loads(sys.argv[1])))))
"""


class NetworkedSandbox(ProcessSandbox):
    """One with a given helper only, and perhaps a router that refuses nothing."""

    helper = ""
    refused: list[str] | None = None

    def __init__(self, helper: str = "", *, refused: list[str] | None = None, **config: Any):
        super().__init__({"network_enabled": True, **config})
        self.helper = helper
        self.refused = refused

    def _station_plan(self) -> dict[str, Any]:
        plan = super()._station_plan()
        plan["helpers"] = [path for path in plan["helpers"] if path.endswith(self.helper)]
        if self.refused is not None:
            plan["refused"] = self.refused
        return plan


@pytest.fixture(params=HELPERS)
def helper(request: pytest.FixtureRequest) -> str:
    return request.param


async def ask(
    box: ProcessSandbox, *questions: tuple[str, str, int], link: bool = False
) -> list[tuple[str, float]]:
    """What TCP or UDP servers say to the code of a sandbox, and after how many seconds."""
    kinds = {"tcp": "SOCK_STREAM", "udp": "SOCK_DGRAM"}
    rows = [(kinds[kind], host, port, link) for kind, host, port in questions]
    result = await box.run_code(ASK, args=[json.dumps(rows)])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def failed(answer: str) -> bool:
    """Whether nobody has said anything."""
    return ": " in answer


@contextlib.contextmanager
def service() -> Generator[int]:
    """A server on every address of the host; its port."""
    with socket.create_server(("0.0.0.0", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line, _ = server.accept()
                    line.sendall(b"the host")
                    line.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def answers_here(address: str, port: int) -> bool:
    """Whether a server says something to the host itself."""
    with socket.create_connection((address, port), timeout=2) as line:
        return line.recv(100) != b""


def started(name: str) -> list[int]:
    """Pids of what this test has started, and what that has started, by a file of that name."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, KeyError):
            if entry.name.isdigit():
                parents[int(entry.name)] = int(status_of(int(entry.name))["PPid"])
    found: list[int] = []
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if above == os.getpid() and any(w.endswith(b"/" + name.encode()) for w in words):
                found.append(pid)
    return [pid for pid in found if parents[pid] not in found]  # not what it forks for a moment


async def wait_until_gone(pid: int) -> None:
    with anyio.fail_after(5), contextlib.suppress(OSError):  # of a process that is not there
        while status_of(pid)["State"][0] not in "ZX":
            await anyio.sleep(0.005)


async def test_public_addresses_and_names_can_be_reached(helper: str) -> None:
    async with NetworkedSandbox(helper) as box:
        assert "network" in box.capabilities
        assert box.isolation.guards["no_network"] == "off"
        said = await ask(
            box, ("tcp", PUBLIC, 80), ("udp", PUBLIC, 9), ("tcp", NEIGHBOUR, 80), ("tcp", NAME, 80)
        )
        assert [text for text, _ in said] == [PUBLIC, "hello", NEIGHBOUR, PUBLIC]


async def test_a_name_that_is_not_there_is_said_to_be_so(helper: str) -> None:
    async with NetworkedSandbox(helper) as box:
        [(text, _)] = await ask(box, ("tcp", "nobody.test", 80))
        assert text.startswith("gaierror"), text


async def test_much_data_gets_through(helper: str) -> None:
    code = f"""
import socket
line = socket.create_connection(({NEIGHBOUR!r}, 81), timeout=20)
data = b"".join(iter(lambda: line.recv(1 << 16), b""))
print(len(data), sum(data) % 1000)
"""
    async with NetworkedSandbox(helper) as box:
        result = await box.run_code(code)
        assert result.stdout == f"{1 << 23} {sum(bytes(range(256))) * (1 << 15) % 1000}\n"


@pytest.mark.parametrize("link", [False, True], ids=["any link", "bound to the link"])
async def test_private_and_metadata_addresses_are_refused(helper: str, *, link: bool) -> None:
    assert all(answers_here(address, 80) for address in CLOSED)
    questions = [(k, a, p) for a in CLOSED for k, p in (("tcp", 80), ("udp", 9))]
    async with NetworkedSandbox(helper) as box:
        before = len(packets())
        said = await ask(box, *questions, link=link)
        assert all(failed(text) for text, _ in said), said
        assert (await ask(box, ("tcp", PUBLIC, 80), link=link))[0][0] == PUBLIC
        assert not {destination for _, destination in packets()[before:]} & set(CLOSED)
        if not link:
            assert max(seconds for _, seconds in said) < 1
    async with NetworkedSandbox(helper, refused=["192.0.2.0/24"]) as box:  # that it can be reached
        said = await ask(box, *questions, link=link)
        assert {text for text, _ in said} == {"hello", *CLOSED}


async def test_the_host_is_refused_by_every_address(helper: str) -> None:
    with service() as port:
        assert answers_here("127.0.0.1", port)
        assert answers_here(HOST, port)
        places = ("127.0.0.1", "127.0.0.53", "0.0.0.0", HOST, "192.0.2.1", "192.0.2.2", "192.0.2.3")
        async with NetworkedSandbox(helper) as box:
            for link in (False, True):
                said = await ask(box, *(("tcp", place, port) for place in places), link=link)
                assert all(failed(text) for text, _ in said), said


async def test_the_name_server_is_no_way_to_other_ports() -> None:
    """Behind its address a helper may have a whole machine. What pasta makes of it goes out."""
    async with NetworkedSandbox("pasta", refused=[]) as box:
        await ask(box, ("tcp", "192.0.2.3", 80))
        assert (HOST, "192.0.2.3") in packets()
    before = len(packets())
    for helper in HELPERS:
        async with NetworkedSandbox(helper) as box:
            said = await ask(box, ("tcp", "192.0.2.3", 80), ("udp", "192.0.2.3", 9))
            assert all(failed(text) for text, _ in said), said
            assert (await ask(box, ("tcp", NAME, 80)))[0][0] == PUBLIC
    assert "192.0.2.3" not in {destination for _, destination in packets()[before:]}


async def test_version_six_is_off(helper: str) -> None:
    code = """
import socket
for host in ("2001:db8::7", "fe80::1%eth0", "fd00:ec2::254", "::ffff:10.1.2.3", "64:ff9b::a01:203",
             "::ffff:169.254.169.254"):
    with socket.socket(socket.AF_INET6) as line:
        line.settimeout(2)
        try:
            line.connect(socket.getaddrinfo(host, 80, proto=socket.IPPROTO_TCP)[0][4])
        except OSError as error:
            print(error.errno)
"""
    async with NetworkedSandbox(helper) as box:
        result = await box.run_code(code)
        assert len(result.stdout.split()) == 6, result
        assert set(result.stdout.split()) <= {"99", "101", "113"}, result  # no address, no route


async def test_raw_sockets_stay_denied(helper: str) -> None:
    code = """
import socket
for family, kind in ((2, socket.SOCK_RAW), (10, socket.SOCK_RAW), (17, socket.SOCK_RAW)):
    try:
        socket.socket(family, kind, 6)
        print("made")
    except PermissionError:
        print("denied")
"""
    async with NetworkedSandbox(helper) as box:
        assert (await box.run_code(code)).stdout.split() == ["denied"] * 3


async def test_its_routes_cannot_be_changed_from_inside(helper: str) -> None:
    code = f"""
import socket, struct
line = socket.socket(16, socket.SOCK_RAW, 0)
body = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 4, 0, 1, 0)
body += struct.pack("=HH4s", 8, 1, socket.inet_aton({METADATA!r}))
body += struct.pack("=HH4s", 8, 5, socket.inet_aton("192.0.2.1"))
line.send(struct.pack("=IHHII", 16 + len(body), 24, 0x505, 1, 0) + body)
print(struct.unpack_from("=i", line.recv(4096), 16)[0])
"""
    async with NetworkedSandbox(helper) as box:
        assert (await box.run_code(code)).stdout.strip() == "-1"


async def test_nothing_inside_can_be_reached_from_the_host(helper: str) -> None:
    code = (
        "import socket, time\ns = socket.create_server(('0.0.0.0', 8123))\nprint(1, flush=True)\n"
    )
    async with NetworkedSandbox(helper) as box, anyio.create_task_group() as group:
        group.start_soon(box.run_code, code + "time.sleep(60)")
        with anyio.fail_after(10):
            while (await ask(box, ("tcp", "127.0.0.1", 8123)))[0][0] != "TimeoutError: timed out":
                await anyio.sleep(0.01)
        for address in ("127.0.0.1", HOST, "192.0.2.100"):
            with pytest.raises(OSError, match=r"refused|No route|unreachable|timed out"):
                socket.create_connection((address, 8123), timeout=0.5)
        group.cancel_scope.cancel()


async def test_a_sandbox_without_network_sends_nothing_even_beside_one_with() -> None:
    targets = [("tcp", place, 80) for place in (PUBLIC, NEIGHBOUR, METADATA, "192.0.2.1")]
    async with NetworkedSandbox() as box, ProcessSandbox() as closed:
        assert closed.isolation.guards["no_network"] == "on"
        assert "network" not in closed.capabilities
        before = len(packets())
        said = await ask(closed, *targets, ("udp", PUBLIC, 9), ("tcp", NAME, 80))
        assert all(failed(text) for text, _ in said), said
        assert packets()[before:] == []
        await ask(box, ("tcp", PUBLIC, 80))
        assert (HOST, PUBLIC) in packets()[before:]


async def test_the_helper_is_nobody_of_the_host(helper: str) -> None:
    async with NetworkedSandbox(helper):
        [pid] = started(helper)
        status = status_of(pid)
        users = set(status["Uid"].split())
        assert len(users) == 1
        assert users == {str(os.geteuid())} if os.geteuid() else int(users.pop()) >= 300_000
        if os.geteuid() == 0:
            assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
        assert status["NoNewPrivs"] == "1"
        with anyio.fail_after(5):  # its own filter, as soon as it has begun
            while status_of(pid)["Seccomp"] != "2":
                await anyio.sleep(0.005)
    await wait_until_gone(pid)


async def test_a_helper_that_dies_is_replaced_and_nothing_else_gets_out(helper: str) -> None:
    async with NetworkedSandbox(helper) as box:
        [pid] = started(helper)
        os.kill(pid, 9)
        await wait_until_gone(pid)
        with anyio.fail_after(10):
            while (await ask(box, ("tcp", PUBLIC, 80)))[0][0] != PUBLIC:
                assert await _refused(box)
        assert await _refused(box)
        assert started(helper) != [pid]


async def _refused(box: ProcessSandbox) -> bool:
    said = await ask(box, ("tcp", METADATA, 80))
    return failed(said[0][0])


async def test_a_helper_ends_with_its_sandbox_however_that_ends(helper: str) -> None:
    box = NetworkedSandbox(helper)
    await box.start()
    [pid] = started(helper)
    await box.stop()
    assert started(helper) == []

    box = NetworkedSandbox(helper)
    await box.start()
    [pid] = started(helper)
    [launcher] = started("launcher.py")
    os.kill(launcher, 9)
    await wait_until_gone(pid)
    await box.stop()


async def test_several_sandboxes_of_one_manager_have_a_helper_each(helper: str) -> None:
    async with NetworkedSandbox(helper) as one, NetworkedSandbox(helper) as other:
        assert len(started(helper)) == 2
        for box in (one, other):
            assert (await ask(box, ("tcp", NAME, 80)))[0][0] == PUBLIC
        await one.stop()
        assert (await ask(other, ("tcp", NAME, 80)))[0][0] == PUBLIC


async def test_a_sandbox_that_outlives_its_manager_keeps_its_network(tmp_path: Path) -> None:
    config = {"network_enabled": True, "on_owner_death": "keep"}
    async with LocalSandboxManager(state_dir=str(tmp_path / "state")) as manager:
        name = await manager.create_sandbox("process", config)
        await manager.hand_over()
    async with LocalSandboxManager(state_dir=str(tmp_path / "state")) as manager:
        box = await manager.get_sandbox(name)
        assert isinstance(box, ProcessSandbox)
        assert "network" in box.capabilities
        assert (await ask(box, ("tcp", NAME, 80)))[0][0] == PUBLIC
        assert await _refused(box)
        [pid] = started("pasta")
        os.kill(pid, 9)
        with anyio.fail_after(10):
            while (await ask(box, ("tcp", PUBLIC, 80)))[0][0] != PUBLIC:
                pass
        await manager.delete_sandbox(name)
        assert started("pasta") == []


async def test_a_root_file_system_gets_its_name_server_too(tmp_path: Path) -> None:
    for folder in ("etc", "tmp", "dev", "proc", "sandbox"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    (tmp_path / "root/etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    async with NetworkedSandbox(rootfs=str(tmp_path / "root")) as box:
        assert (await ask(box, ("tcp", PUBLIC, 80)))[0][0] == PUBLIC
        result = await box.run_code("print(open('/etc/resolv.conf').read())")
        assert result.stdout.split() == ["nameserver", "192.0.2.3"]


def test_the_command_line_gives_a_network_only_when_asked() -> None:
    code = f"import socket; print(socket.create_connection(({PUBLIC!r}, 80)).recv(100).decode())"
    for options, expected in (([], (1, "")), (["--network"], (0, f"{PUBLIC}\n"))):
        words = [str(Path(sys.executable).with_name("ms-enclave")), "run", *options, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == expected, done.stderr
