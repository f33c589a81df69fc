"""A module that is imported ahead is anybody's code, and what it leaves behind starts every run."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import ConfigError
from ms_enclave.model import ProcessSandboxConfig

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

FIND_PAGE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
page = None
for line in open('/proc/self/maps'):
    words = line.split()
    if words[1] == 'r-xp' and len(words) == 5:
        start, end = (int(word, 16) for word in words[0].split('-'))
        if end - start == 4096 and ctypes.string_at(start, 3) == b'\\x0f\\x05\\xcc':
            page = start
assert page
"""

# In front of what a copy does in the station's name: getuid() and capget() into the page's end.
REWRITE = (
    FIND_PAGE
    + """
import struct
assert libc.mprotect(page, 4096, 7) == 0
header, data, user = page + 2048, page + 2064, page + 2100
code = b'\\x48\\x89\\xf5\\xb8' + struct.pack('<I', 125)
code += b'\\x48\\xbf' + struct.pack('<Q', header) + b'\\x48\\xbe' + struct.pack('<Q', data)
code += b'\\x0f\\x05\\x48\\x89\\xee' + ctypes.string_at(page + 16, 8)
code += b'\\xe9' + struct.pack('<i', page + 24 - (page + 1024 + len(code) + 5))
ctypes.memmove(page + 1024, code, len(code))
ctypes.memmove(header, struct.pack('<II', 0x20080522, 0), 8)
ctypes.memmove(page + 16, b'\\xe9' + struct.pack('<i', 1024 - 21), 5)
"""
)

SEEN = """
import ctypes, planted
print(ctypes.string_at(planted.page + 1024, 3072).strip(bytes(1)))
"""

ORPHANS = """
import ctypes, time
for _ in range(3):
    if ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0) == 0:  # CLONE_PARENT
        time.sleep(600)
"""

THREADS = """
import os, threading, time
os.write(3, b'R')
end = time.monotonic() + 2
while time.monotonic() < end:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
time.sleep(600)
"""

FORKS = """
import os, time
made = 0
for _ in range(2000):
    if os.fork() == 0:
        time.sleep(600)
"""

DEATH = """
import os, time
if os.fork():
    os._exit(3)
time.sleep(600)
"""

MODULES = {"orphans": ORPHANS, "threads": THREADS, "forks": FORKS, "death": DEATH}


def environment(folder: Path, module: str) -> str:
    """A virtual environment with a module of that source in it."""
    place = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = place.glob("lib/python3*/site-packages")
    (packages / "planted.py").write_text(module)
    return str(place)


def preloading(python: str) -> ProcessSandbox:
    return ProcessSandbox(ProcessSandboxConfig(python=python, preload=["planted"]))


async def test_a_carriers_code_cannot_be_rewritten_ahead(tmp_path: Path) -> None:
    async with preloading(environment(tmp_path, REWRITE)) as box:
        result = await box.run_code(SEEN)
    assert (result.stdout, result.stderr) == ("b''\n", "")


async def test_the_code_page_cannot_be_kept_from_being_made_anew(tmp_path: Path) -> None:
    seal = FIND_PAGE + "sealed = libc.syscall(462, ctypes.c_ulong(page), 4096, 0)\n"  # mseal
    box = preloading(environment(tmp_path, seal))
    try:
        await box.start()
    except ConfigError:
        return
    finally:
        await box.stop()
    async with preloading(box.config.python or "") as box:  # a kernel without mseal
        assert (await box.run_code("import planted; print(planted.sealed)")).stdout == "-1\n"


async def test_memory_that_sandboxes_would_share_is_refused(tmp_path: Path) -> None:
    box = preloading(environment(tmp_path, "import mmap\nshared = mmap.mmap(-1, 4096)\n"))
    with pytest.raises(ConfigError, match="shares memory"):
        await box.start()
    await box.stop()


async def test_threads_that_copies_would_only_have_in_their_books_are_refused(
    tmp_path: Path,
) -> None:
    source = (
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    box = preloading(environment(tmp_path, source))
    with pytest.raises(ConfigError, match="1 thread running"):
        await box.start()
    await box.stop()


@pytest.mark.parametrize("name", ["orphans", "threads", "forks", "death"])
async def test_a_preparation_cannot_hold_up_its_neighbours(tmp_path: Path, name: str) -> None:
    python = environment(tmp_path, MODULES[name])
    box = preloading(python)
    async with ProcessSandbox(ProcessSandboxConfig(python=python)) as neighbour:
        async with anyio.create_task_group() as group:

            async def start() -> None:
                with suppress(ConfigError):
                    await box.start()

            with anyio.fail_after(15):
                group.start_soon(start)
                for _ in range(10):
                    assert (await neighbour.run_code("print(1)")).stdout == "1\n"
                    await anyio.sleep(0.05)
        await box.stop()
        assert (await neighbour.run_code("print(2)")).stdout == "2\n"
