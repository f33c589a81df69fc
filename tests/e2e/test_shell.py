"""`ms-enclave shell`, as a person has it: on a real terminal, and in tmux."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.namespaces

ENCLAVE = [sys.executable, "-c", "from ms_enclave.cli import run_cmd; run_cmd()"]
ON_A_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execv(sys.argv[1], sys.argv[1:])"
)
ENVIRONMENT = {**os.environ, "TERM": "xterm"}


class Person:
    """Somebody at a terminal of so many rows and columns."""

    def __init__(self, *words: str, size: tuple[int, int] = (24, 80)) -> None:
        self.master, other = os.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(self.master)
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, *ENCLAVE, "shell", *words],
            stdin=other, stdout=other, stderr=other, start_new_session=True, env=ENVIRONMENT,
        )  # fmt: skip
        os.close(other)
        self.seen = b""

    def resize(self, rows: int, cols: int) -> None:
        size = struct.pack("HHHH", rows, cols, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def sees(self, pattern: str) -> str:
        """Wait until something is shown, and forget what was before it."""
        deadline = time.monotonic() + 30
        while (found := re.search(pattern.encode(), self.seen)) is None:
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.master], [], [], left)[0]:
                data = self.read()
                assert data, self.seen
                self.seen += data
        self.seen = self.seen[found.end() :]
        return found.group().decode()

    def read(self) -> bytes:
        try:
            return os.read(self.master, 65536)
        except OSError:  # nobody has the other end any more
            return b""

    def leaves(self) -> int:
        """Wait for its end; the exit code."""
        while self.process.poll() is None:
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += self.read()
        return self.process.returncode


@pytest.fixture
def sit_down() -> Iterator[Callable[..., Person]]:
    people: list[Person] = []

    def sit(*words: str, size: tuple[int, int] = (24, 80)) -> Person:
        people.append(Person(*words, size=size))
        return people[-1]

    yield sit
    for person in people:
        with contextlib.suppress(ProcessLookupError):
            person.process.terminate()
        person.process.wait(20)
        os.close(person.master)


def test_a_person_has_a_terminal_in_a_sandbox(sit_down: Callable[..., Person]) -> None:
    person = sit_down(size=(31, 97))
    person.sees(r"sandbox:/sandbox\$ ")
    person.type("stty size; tty; echo $TERM\r")
    person.sees(r"31 97\r\n/dev/pts/0\r\nxterm\r\n")
    person.resize(40, 120)
    person.type("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.02; done; echo fol''lowed\r")
    person.sees("followed")
    person.type("sh -c 'echo beg\"\"un; exec sleep 600'\r")  # in the foreground before it says so
    person.sees("begun")
    person.type("\x03")
    person.sees(r"\$ ")
    person.type("exit 7\r")
    assert person.leaves() == 7


def test_a_command_of_ones_own_has_it(sit_down: Callable[..., Person]) -> None:
    person = sit_down(
        "--memory", "256m", "-e", "X=given", "--", "sh", "-c", "echo $X; read -r a; exit $a"
    )
    person.sees("given")
    person.type("9\r")
    assert person.leaves() == 9


def test_keys_are_the_programs_and_not_ours(sit_down: Callable[..., Person]) -> None:
    line = "stty raw -echo; echo ready; head -c 3 | od -An -tu1"
    person = sit_down("--", "sh", "-c", line)
    person.sees("ready")
    person.type("\x03\x1a\x04")
    person.sees(r"3 +26 +4")
    assert person.leaves() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_given_back(sit_down: Callable[..., Person], number: int) -> None:
    person = sit_down()
    person.sees(r"\$ ")
    during = termios.tcgetattr(person.master)
    assert not during[3] & termios.ECHO
    os.kill(person.process.pid, number)
    assert person.leaves() == 128 + number
    assert termios.tcgetattr(person.master) == person.before


def test_a_time_out_is_124(sit_down: Callable[..., Person]) -> None:
    person = sit_down("--timeout", "1", "--", "sleep", "600")
    assert person.leaves() == 124
    assert b"timed out after 1 seconds" in person.seen


def test_without_a_terminal_it_says_what_to_use(tmp_path: Path) -> None:
    done = subprocess.run(
        [*ENCLAVE, "shell"], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 125
    assert b"ms-enclave run" in done.stderr


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_it_works_in_tmux(tmp_path: Path) -> None:
    server = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]

    def tmux(*words: str) -> str:
        done = subprocess.run(
            [*server, *words], capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout

    def shows(text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in (shown := tmux("capture-pane", "-p")):
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)

    tmux("new-session", "-d", "-x", "90", "-y", "25", *ENCLAVE, "shell")
    try:
        shows("sandbox:/sandbox$")
        tmux("send-keys", "stty size; id -un", "Enter")
        shows("25 90\nsandbox\n")
        tmux("resize-window", "-x", "70", "-y", "20")
        tmux("send-keys", "clear; sleep 0.5; stty size", "Enter")
        shows("20 70\n")
        tmux("send-keys", "sleep 600", "Enter")
        shows("sleep 600")
        tmux("send-keys", "C-c", "")
        tmux("send-keys", "echo went$((1 + 1))on", "Enter")
        shows("\nwent2on\n")
        tmux("send-keys", "exit", "Enter")
        deadline = time.monotonic() + 20
        while (
            subprocess.run([*server, "has-session"], capture_output=True, check=False).returncode
            == 0
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        subprocess.run([*server, "kill-server"], capture_output=True, check=False)
