"""What a program does to the commands of its own sandbox costs it its own output, and no more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.boxes import SandboxFactory
from ms_enclave.loop import call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ms_enclave.boxes import Sandbox

pytestmark = pytest.mark.namespaces


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    sandbox = SandboxFactory.create_sandbox("process", {"disk_limit": "64m"})
    call(sandbox.start)
    call(sandbox.files.exists, ".")  # what it makes on first use is there before any test
    yield sandbox
    call(sandbox.stop)


async def test_older_output_that_was_changed_counts_as_lost(box: Sandbox) -> None:
    command = await box.start_command("yes | head -c 2000000")
    await command.wait(60)
    before = await command.read(max_bytes=2_000_000)
    assert (len(before.data), before.lost) == (2_000_000, 0)
    spoilt = await box.execute_command(
        f"cd /tmp/.ms-enclave/commands/{command.id} && ls | wc -l && "
        "cat 1 2 3 4 5 6 | wc -c && echo rubbish > 1 && rm 2 && "
        "ln -s /dev/zero 2 && rm 3 && mkfifo 3 && rm 4 && mkdir 4 && rm 5 && ln -s 6 5 && "
        "printf n | dd of=6 bs=1 seek=100 conv=notrunc status=none"
    )
    assert spoilt.exit_code == 0
    blocks, spoilt_bytes = map(int, spoilt.stdout.split())
    assert blocks > 6
    after = await command.read(max_bytes=2_000_000)
    assert (
        0.99 * spoilt_bytes < after.lost < spoilt_bytes
    )  # every piece has a header of a few bytes
    assert after.data == b"y\n" * (len(after.data) // 2)
    assert after.cursor == 2_000_000


async def test_a_full_disk_loses_older_output_and_holds_up_nobody(box: Sandbox) -> None:
    await box.execute_command("head -c 100000000 /dev/zero > full")
    command = await box.start_command("yes | head -c 3000000; echo end >&2")
    result = await command.wait(60)
    assert result.stderr == "end\n"
    assert 0 < result.truncated["stdout"] < 3_000_000
    assert result.stdout.endswith("y\ny\n")
    await box.files.remove("full")


async def test_a_stopped_guest_holds_up_no_program(box: Sandbox) -> None:
    await box.files.exists(".")
    stop = "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = $$ ] || kill -STOP $p; done 2>/dev/null"
    await box.execute_command(stop)
    command = await box.start_command("yes | head -c 3000000; echo end >&2")
    assert (await command.wait(60)).stderr == "end\n"


async def test_a_killed_guest_costs_output_in_between_at_most(box: Sandbox) -> None:
    command = await box.start_command("yes | head -c 2000000; read go; yes | head -c 2000000",
        stdin=True)  # fmt: skip
    with anyio.fail_after(60):
        while command.cursor < 2_000_000:
            await anyio.sleep(0.02)
    killed = await box.execute_command(
        "for p in $(grep -l 'boot[.]py' /proc/[0-9]*/cmdline); do p=${p#/proc/}; p=${p%/cmdline}; "
        "[ $p = $$ ] || { kill -KILL $p && echo $p; }; done"
    )
    assert len(killed.stdout.split()) == 1, killed
    await command.write("go\n")
    result = await command.wait(60)
    assert result.exit_code == 0
    chunk = await command.read(max_bytes=8_000_000)
    assert len(chunk.data) + chunk.lost == 4_000_000
    assert chunk.data == b"y\n" * (len(chunk.data) // 2)
    later = await box.start_command("yes | head -c 2000000")
    await later.wait(60)
    chunk = await later.read(max_bytes=2_000_000)
    assert (len(chunk.data), chunk.lost) == (2_000_000, 0)
    assert await box.files.exists(".")


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_endless_output_that_nobody_reads_takes_no_memory(box: Sandbox) -> None:
    commands = [await box.start_command("yes"), await box.start_command("yes", pty=(24, 80))]
    commands.append(await box.start_command("while :; do printf a; printf b >&2; done"))

    async def printed(amount: int) -> None:
        with anyio.fail_after(60):
            while sum(command.cursor for command in commands) < amount:
                await anyio.sleep(0.02)

    await printed(30 << 20)
    before = resident()
    await printed(300 << 20)
    grown = resident() - before
    for command in commands:
        await command.kill()
    assert grown < 16 << 20


TAKE_ALL = """
import os, time
held = []
while True:
    try:
        held.append(os.openpty())
    except OSError:
        break
print(len(held), flush=True)
time.sleep(600)
"""


async def test_a_program_that_takes_every_terminal_takes_its_own_sandboxes_only(
    box: Sandbox,
) -> None:
    taker = await box.start_command(["python3", "-c", TAKE_ALL])
    assert int((await taker.read(wait=20)).data) == 16
    with pytest.raises(BlockingIOError, match="no terminal left"):
        await box.start_command("true", pty=(24, 80))
    async with SandboxFactory.create_sandbox("process") as other:
        beside = await other.start_command("tty", pty=(24, 80))
        assert (await beside.wait(10)).stdout == "/dev/pts/0\r\n"
    await taker.kill()
    again = await box.start_command("tty", pty=(24, 80))
    assert (await again.wait(10)).stdout.startswith("/dev/pts/")


async def test_the_end_that_masters_a_terminal_is_not_inside(box: Sandbox) -> None:
    command = await box.start_command("readlink /proc/[0-9]*/fd/* | sort -u", pty=(24, 80))
    result = await command.wait(10)
    opened = result.stdout.split()
    assert any(name.startswith("/dev/pts/") for name in opened)
    assert not any("ptmx" in name for name in opened)


async def test_a_terminal_is_its_users_by_its_name_too(box: Sandbox) -> None:
    command = await box.start_command("echo named >$(tty); stat -c %U $(tty)", pty=(24, 80))
    assert (await command.wait(10)).stdout == "named\r\nsandbox\r\n"
