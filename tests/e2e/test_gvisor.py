"""The tier `gvisor`: a kernel of the sandbox's own, of which nothing is left."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import CapabilityError, IsolationUnavailableError, SandboxLostError
from ms_enclave.manager.local_manager import LocalSandboxManager
from tests.security.boxes import namespaces
from tests.support.roots import make_bare_root

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.namespaces

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="runsc takes root")
needs_runsc = pytest.mark.runsc

OWNER = """
import asyncio
from ms_enclave.boxes.process_sandbox import ProcessSandbox

async def main():
    async with ProcessSandbox({"isolation": "gvisor"}) as box:
        await box.execute_command("sleep 1000 > /dev/null 2>&1 &")
        print("ready", flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


def parts() -> set[str]:
    """Who there is of gVisor on this machine, and of what starts it."""
    found: set[str] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if words.startswith(b"runsc") or b"gvisor_launcher.py" in words:
                found.add(entry.name)
    return found


def kernels() -> list[str]:
    """Those of them that `runsc` itself is or has started."""
    found: list[str] = []
    for pid in parts():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"runsc"):
                found.append(pid)
    return found


def groups() -> set[str]:
    """The names of the control groups of those."""
    found: set[str] = set()
    for pid in parts():
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().split("/")
        except OSError:
            continue
        found |= {line.strip() for line in lines if line.startswith("ms-enclave-")}
    return found


def left_of(names: set[str]) -> list[Path]:
    top = Path("/sys/fs/cgroup")
    return [path for name in names for path in (*top.glob(f"*/{name}"), *top.glob(name))]


def sandbox(**config: object) -> ProcessSandbox:
    return ProcessSandbox({"isolation": "gvisor", **config})


@needs_runsc
async def test_it_runs_code_commands_cells_and_files_on_a_kernel_of_its_own() -> None:
    async with LocalSandboxManager() as manager:
        name = await manager.create_sandbox("process", {"isolation": "gvisor"})
        box = await manager.get_sandbox(name)
        assert box is not None
        code = "import os; print(os.uname().release); open('made', 'w').write('inside')"
        ran = await box.run_code(code)
        assert ran.stdout.strip() not in ("", os.uname().release), ran
        assert ran.isolation == box.isolation.tier == "gvisor"
        assert await box.files.read("made") == b"inside"
        await box.files.write("given", "outside")
        said = await box.execute_command("cat given; echo $HOME; id -u; exit 3")
        assert (said.stdout, said.exit_code) == ("outside/sandbox\n1000\n", 3)
        kernel = await box.kernel()
        await kernel.run("kept = 41")
        assert (await kernel.run("print(kept + 1)")).stdout == "42\n"
        late = await box.execute_command("echo soon; sleep 60", timeout=1)
        assert (late.stdout, late.verdict) == ("soon\n", "wall_timeout")
        hidden = await box.execute_command(
            "cat /etc/shadow /root/.bashrc; cat /proc/1/root/etc/shadow"
        )
        assert hidden.exit_code != 0
        assert hidden.stdout == ""


@needs_runsc
async def test_what_it_cannot_do_is_refused() -> None:
    for config in (
        {"network_enabled": True},
        {"preload": ["json"]},
        {"volumes": {"/usr/share": {"bind": "/given", "mode": "rw"}}},
    ):
        with pytest.raises(CapabilityError):
            async with sandbox(**config):
                pass
    with pytest.raises(IsolationUnavailableError, match="hidden_guest"):
        async with sandbox(require=["own_kernel", "hidden_guest"]):
            pass
    async with sandbox(require=["own_kernel"]) as box:
        with pytest.raises(CapabilityError):
            await box.execute_command("id", user="root")
    assert parts() == set()


@needs_runsc
async def test_what_it_lacks_is_no_capability_of_it_and_another_tier_is_named() -> None:
    async with sandbox() as box:
        tries: dict[str, list[Callable[[], Awaitable[object]]]] = {
            "ports": [box.list_ports, lambda: box.connect(80)],
            "terminals": [box.shell, lambda: box.start_command("sh", pty=(24, 80))],
            "watch": [lambda: anext(box.files.watch("."))],
            "pause": [box.pause, box.resume],
            "fork": [box.fork],
            "checkpoint": [box.checkpoint, lambda: box.rollback("none"), box.tree],
            "snapshot": [lambda: box.snapshot("one")],
        }
        assert ProcessSandbox.offers - box.capabilities == {*tries, "network"}
        for capability, all_of_it in tries.items():
            for each in all_of_it:
                with pytest.raises(CapabilityError) as caught:
                    await each()
                assert caught.value.capability == capability
                assert "isolation='namespace'" in (caught.value.remedy or "")
        assert (await box.execute_command("echo on")).stdout == "on\n"


@needs_runsc
async def test_the_seed_is_that_of_every_run_and_of_every_kernel() -> None:
    code = "from __future__ import annotations\nimport random\nprint(random.random())"
    async with sandbox(seed=7) as box:
        runs = {(await box.run_code(code)).stdout for _ in range(2)}
        kernel = await box.kernel()
        runs.add((await kernel.run("import random; print(random.random())")).stdout)
        assert runs == {f"{random.Random(7).random()}\n"}
        failed = await box.run_code("1\n2\nraise ValueError(__name__)")
        assert 'File "<string>", line 3, in <module>\nValueError: __main__' in failed.stderr
    async with sandbox() as box:
        assert len({(await box.run_code(code)).stdout for _ in range(3)}) == 3


@needs_runsc
async def test_a_root_file_system_of_its_own_is_all_that_it_sees(tmp_path: Path) -> None:
    bare_root = make_bare_root(tmp_path)
    before = sorted(str(path) for path in bare_root.rglob("*"))
    async with sandbox(rootfs=str(bare_root)) as box:
        assert (await box.execute_command("cat /etc/whoami")).stdout == "the image\n"
        code = "import sys, ssl; print(sys.version_info[:2], open('/etc/whoami').read())"
        result = await box.run_code(code)
        assert result.stdout == f"{sys.version_info[:2]} the image\n\n", result.stderr
        await box.files.write("/sandbox/x", "y")
        assert (await box.execute_command("cat x")).stdout == "y"
        assert (await box.execute_command("echo > /planted")).exit_code != 0
        assert (await box.execute_command("cat /usr/bin/env /etc/passwd")).exit_code != 0
        assert box.isolation.guards["own_kernel"] == "on"
    assert sorted(str(path) for path in bare_root.rglob("*")) == before


@needs_root
async def test_without_runsc_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(IsolationUnavailableError) as caught:
        async with sandbox():
            pass
    assert caught.value.missing == ["runsc"]
    assert "apt install runsc" in (caught.value.remedy or "")


@needs_root
async def test_a_runsc_that_does_not_work_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "runsc"
    fake.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit 0\necho no such platform >&2\nexit 128\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(IsolationUnavailableError) as caught:
        async with sandbox():
            pass
    assert caught.value.missing == ["runsc"]
    assert parts() == set()


@needs_runsc
async def test_its_kernel_and_file_servers_are_in_namespaces_of_their_own() -> None:
    async with sandbox() as box:
        assert (await box.execute_command("echo on")).stdout == "on\n"
        assert len(kernels()) >= 3  # who waits, the kernel, and whoever opens files for it
        for pid in kernels():
            for kind, own in namespaces("self").items():
                if kind in ("mnt", "pid", "net", "ipc", "uts"):
                    assert namespaces(pid)[kind] != own, (pid, kind)
            links = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
            assert [line.split(":")[0].strip() for line in links if "lo:" not in line] == []
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            for name, value in os.environ.items():
                assert name == "PATH" or f"{name}={value}\0".encode() not in environment


@needs_runsc
async def test_what_it_stores_is_bounded_in_bytes_and_in_files() -> None:
    async with sandbox(disk_limit="8m") as box:
        full = (
            "try:\n  open('{}', 'wb').write(b'x' * (12 << 20))\nexcept OSError as e: print(e.errno)"
        )
        for place in ("big", "/tmp/big"):
            assert (await box.run_code(full.format(place))).stdout == f"{errno.ENOSPC}\n"
            await box.execute_command(f"rm {place}")
        many = (
            "import sys\n"
            "try:\n  for n in range(3000): open(f'f{n}', 'w').close()\n"
            "except OSError as e: print(e.errno)"
        )
        assert (await box.run_code(many)).stdout == f"{errno.ENOSPC}\n"


@needs_runsc
async def test_more_memory_than_it_may_have_ends_the_sandbox_and_says_so() -> None:
    async with sandbox(memory_limit="64m") as box:
        names = groups()
        if box.isolation.guards["cgroup_memory"] != "on":
            pytest.skip("no control group holds its memory here")
        with pytest.raises(SandboxLostError, match="memory"):
            await box.run_code("held = []\nwhile True: held.append(bytearray(b'x') * (8 << 20))")
    assert parts() == set()
    assert left_of(names) == []


@needs_runsc
async def test_who_kills_its_kernel_ends_it_and_it_is_found_and_removed() -> None:
    async with sandbox() as box:
        (found,) = [row for row in await ProcessSandbox.find_all() if row.id == box.id]
        assert (found.state, found.owner) == ("running", "alive")
        await ProcessSandbox.remove_found([found])
        with pytest.raises(SandboxLostError):
            await box.execute_command("true")
            await anyio.sleep(0)
    assert parts() == set()


@needs_runsc
@pytest.mark.parametrize("hangs", [False, True])
def test_nothing_is_left_of_it_when_its_owner_is_killed(hangs: bool) -> None:
    """A guest that hears of it ends by itself; one whose kernel hangs is ended."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    stopped: list[int] = []
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        names = groups()
        assert parts() != set()
        for pid in kernels() if hangs else []:
            stopped.append(os.pidfd_open(int(pid)))
            signal.pidfd_send_signal(stopped[-1], signal.SIGSTOP)
        owner.kill()
        owner.wait()
        deadline = time.monotonic() + 5
        while (parts() or left_of(names)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert parts() == set()
        assert left_of(names) == []
    finally:
        owner.kill()
        owner.communicate()  # closes what it said, too
        for held in stopped:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held, signal.SIGCONT)
            os.close(held)
