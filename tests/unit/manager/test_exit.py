"""A program that ends without a word leaves no sandbox behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

PRELUDE = """
import asyncio, sys, threading
from ms_enclave import blocking, loop
from ms_enclave.manager import LocalSandboxManager
from tests.support.subprocess_box import install
install()
"""


def start(text: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "always::ResourceWarning", "-c", PRELUDE + textwrap.dedent(text)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder() -> Path:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        assert os.listdir(name) == []  # every box has its folder here


def finish(program: subprocess.Popen[str]) -> str:
    out, err = program.communicate(timeout=60)
    assert err == ""
    assert program.returncode == 0
    return out


@pytest.mark.parametrize(
    "text",
    [
        "manager = LocalSandboxManager()\nasyncio.run(manager.create_sandbox('subprocess'))",
        "blocking.LocalSandboxManager().initialize_pool(2, 'subprocess')",
        "blocking.SandboxFactory.create_sandbox('subprocess').start()",
        "blocking.LocalSandboxManager().create_sandbox('subprocess'); sys.exit(0)",
    ],
)
def test_what_was_never_stopped_is_stopped_at_exit(folder: Path, text: str) -> None:
    finish(start(text, folder))


@pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info < (3, 12, 2),
    reason="CPython gh-113964: daemon threads end with the main one",
)
def test_a_thread_works_on_while_the_main_one_has_ended(folder: Path) -> None:
    out = finish(
        start(
            """
            manager = blocking.LocalSandboxManager()
            def work():
                threading.main_thread().join()
                with manager.sandbox("subprocess") as box:
                    print(box.execute_command("echo from inside").stdout)
            threading.Thread(target=work).start()
            """,
            folder,
        )
    )
    assert out == "from inside\n\n"


def test_ctrl_c_ends_the_program_and_its_sandboxes(folder: Path) -> None:
    program = start(
        """
        with blocking.LocalSandboxManager() as manager, manager.sandbox("subprocess") as box:
            try:
                box.execute_command("echo started > started; exec sleep 100")
            except KeyboardInterrupt:
                print("interrupted")
        """,
        folder,
    )
    deadline = time.monotonic() + 30
    while not list(folder.glob("box-*/started")) and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    program.send_signal(signal.SIGINT)
    assert finish(program) == "interrupted\n"
    assert time.monotonic() - began < 10
