"""File calls while a program of the sandbox puts a link out in the place of a folder, and back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import EnclaveError
from tests.security.boxes import ColdSandbox, LandlockSandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ms_enclave.boxes.base import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

SWAPPER = """
import ctypes, os, sys
away = sys.argv[1]
os.makedirs("folder", exist_ok=True)
with open("folder/file", "w") as file:
    file.write("mine")
os.symlink(away, "link")
open("ready", "w").close()
exchange = ctypes.CDLL(None).renameat2
while exchange(-100, b"folder", -100, b"link", 2) == 0:  # at no moment is there none
    pass
"""
ROUNDS = int(os.environ.get("MS_ENCLAVE_TEST_SWAPS", "1000"))
SECRET = "the host's"


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Path]:
    """A folder of the host's that everybody may read and write, with a file in it."""
    for path in (*reversed(tmp_path.parents), tmp_path):
        if path.stat().st_uid == os.geteuid() and str(path).startswith(os.environ["TMPDIR"]):
            path.chmod(0o755)
    folder = tmp_path / "away"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "file").write_text(SECRET)
    (folder / "file").chmod(0o666)
    yield folder
    assert [entry.name for entry in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == SECRET


@pytest.mark.parametrize("kind", [ProcessSandbox, ColdSandbox, LandlockSandbox])
async def test_no_call_is_led_out(kind: type[Sandbox], away: Path) -> None:
    async with kind() as box:
        await box.files.write("swap.py", SWAPPER)
        handle = await box.execute_command(f"python3 swap.py {away} & echo started", timeout=60)
        assert handle.stdout == "started\n", handle
        with anyio.fail_after(30):
            while not await box.files.exists("ready"):
                await anyio.sleep(0.01)
        seen: set[str] = set()
        for number in range(ROUNDS):
            try:
                if number % 2:
                    await box.files.write("folder/file", "mine")
                else:
                    seen.add(await box.files.read_text("folder/file"))
            except (OSError, EnclaveError) as error:
                seen.add(type(error).__name__)
        assert "mine" in seen
        assert len(seen) > 1, "the folder was always there, or never: nothing was raced"
        assert SECRET not in seen


def naive_read(root: str, name: str) -> str:
    """A file, if its path leads nowhere out at the moment of asking."""
    path = os.path.join(root, name)
    if not os.path.realpath(path).startswith(f"{root}/"):
        raise PermissionError(name)
    with open(path) as file:
        return file.read()


async def test_control_who_looks_first_and_then_opens_is_led_out(
    tmp_path: Path, away: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    swapper = subprocess.Popen([sys.executable, "-I", "-c", SWAPPER, str(away)], cwd=root)

    def look() -> bool:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if naive_read(os.path.realpath(root), "folder/file") == SECRET:
                    return True
            except OSError:
                continue
        return False

    try:
        assert await anyio.to_thread.run_sync(look)
    finally:
        swapper.kill()
        await anyio.to_thread.run_sync(swapper.wait)
