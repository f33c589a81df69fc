"""The first example that people look at does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.mark.namespaces
def test_the_quickstart_prints_what_its_programs_print() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "45\nwall_timeout\n7\n3 gone wrong\n"


@pytest.mark.namespaces
def test_the_example_of_ports_reaches_its_server() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE.with_name("ports.py"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == ("<h1>first</h1>\n[(8000, '127.0.0.1')]\n<h1>second</h1>\n64 MiB\n")


@pytest.mark.namespaces
def test_the_example_of_commands_that_live_on_finds_its_server_again() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE.with_name("background.py"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "Serving HTTP on 127.0.0.1 port 8000", "GET / HTTP/1.1", "server ended: True",
        "hello from-project", "wall_timeout", "hello again", "True", "name? world", "hello world",
    ]  # fmt: skip


@pytest.mark.namespaces
def test_the_example_of_a_kernel_remembers_and_dies_as_it_says() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE.with_name("kernel.py"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "30", "5 rows as ['text/html', 'text/plain']", "0", "1", "'Ann'", "wall_timeout", "5",
        "dead signal", "False",
    ]  # fmt: skip
