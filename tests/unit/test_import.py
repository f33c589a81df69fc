"""Importing is cheap: of the package above all."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def load(module: str) -> list[str]:
    """What an import loads in a new interpreter. How long it takes is for the bench to say."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_package_loads_nothing_but_itself() -> None:
    loaded = load("ms_enclave")
    assert [name for name in loaded if name.startswith("ms_enclave")] == ["ms_enclave"]
    assert not {"asyncio", "pydantic", "anyio"} & set(loaded)


def test_the_data_loads_no_backend() -> None:
    loaded = load("ms_enclave.model")
    parts = {name.split(".")[1] for name in loaded if name.startswith("ms_enclave.")}
    assert parts <= {"errors", "model", "utils"}


def test_registries_name_types_without_loading_them() -> None:
    program = (
        "import sys; from ms_enclave.registry import Registry, SANDBOXES; "
        "print(Registry('Sandbox type', 'ms_enclave.sandboxes', SANDBOXES).names()); "
        "print([name for name in sys.modules if name.startswith('ms_enclave.boxes')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1] == "[]"
    assert "process" in done.stdout


def test_the_contract_suites_say_what_they_need() -> None:
    program = "import sys; sys.modules['pytest'] = None; import ms_enclave.testing"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "pip install pytest" in done.stderr.splitlines()[-1]
