"""The tier `gvisor`: a kernel of the sandbox's own, of which nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import CapabilityError, IsolationUnavailableError, SandboxLostError
from ms_enclave.manager.local_manager import LocalSandboxManager

pytestmark = pytest.mark.namespaces

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="runsc takes root")
needs_runsc = pytest.mark.skipif(shutil.which("runsc") is None, reason="there is no runsc here")

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


@needs_root
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


@needs_root
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
            await box.list_ports()
        with pytest.raises(CapabilityError):
            await box.execute_command("id", user="root")
    assert parts() == set()


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


@needs_root
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


@needs_root
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


@needs_root
@needs_runsc
def test_nothing_is_left_of_it_when_its_owner_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        names = groups()
        assert parts() != set()
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    deadline = time.monotonic() + 5
    while (parts() or left_of(names)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert parts() == set()
    assert left_of(names) == []
