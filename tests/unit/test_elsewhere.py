"""On a system that is not Linux the package imports, and `process` refuses with what to do."""

from __future__ import annotations

import json
import subprocess
import sys

# The dependencies and the parts of the standard library that themselves need these modules on this
# system are loaded first; what is ours must do without.
PRELUDE = """
import asyncio, asyncio.subprocess, subprocess, tempfile, tarfile, shutil, getpass, json, sys
import aiohttp, anyio, anyio.abc, anyio.from_thread, anyio.to_thread, pydantic, rich.console
import pytest, rich.progress, rich.table, typer, importlib, pkgutil, multiprocessing.connection
import anyio._backends._asyncio, zoneinfo, sysconfig
sysconfig.get_config_vars()
for name in ("fcntl", "resource", "pwd", "grp", "pty", "termios", "tty"):
    sys.modules[name] = None
sys.platform = "darwin"
import ms_enclave
"""

EVERY_MODULE = (
    PRELUDE
    + """
only_on_linux = (
    "ms_enclave.guest", "ms_enclave.spawner", "ms_enclave.attack.inside.e",
    "ms_enclave.boxes._process_found", "ms_enclave.boxes._process_removed",
    "ms_enclave.boxes.notebook.",  # what runs in a container
)
failed = {}
def walk(package):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name.startswith(only_on_linux):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except Exception as error:
            failed[module.name] = repr(error)
        else:
            if module.ispkg:
                walk(loaded)
walk(ms_enclave)
print(json.dumps(failed))
"""
)

REFUSAL = (
    PRELUDE
    + """
from ms_enclave.boxes.factory import SandboxFactory
from ms_enclave.errors import IsolationUnavailableError

async def main():
    try:
        async with SandboxFactory.create_sandbox("process"):
            return "it started"
    except IsolationUnavailableError as error:
        return str(error)
print(json.dumps(asyncio.run(main())))
"""
)


def _run(program: str) -> object:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_module_imports_without_what_only_unix_has() -> None:
    assert _run(EVERY_MODULE) == {}


def test_the_process_sandbox_refuses_and_names_linux() -> None:
    said = _run(REFUSAL)
    assert isinstance(said, str)
    assert "What to do: run ms-enclave on a Linux machine" in said
