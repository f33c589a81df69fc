"""A launcher started ahead, and who may hold the line to it."""

from __future__ import annotations

import os
import select
import shutil

import pytest

from ms_enclave.spawner import launch

NOTHING = shutil.which("true")


@pytest.mark.skipif(NOTHING is None, reason="there is no `true` here")
def test_a_forked_child_does_not_keep_a_launcher_alive_that_it_never_took() -> None:
    launch.launch_ahead("a plan", {"launcher_python": NOTHING, "launcher": "launcher.py"})
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(said, b"none" if launch.take("a plan") is None else b"one")
        os._exit(0)
    taken = launch.take("a plan")
    assert taken is not None
    assert taken.process.wait() == 0
    os.waitpid(child, 0)
    assert select.select([heard], [], [], 0)[0]
    answer = os.read(heard, 16)
    for descriptor in (heard, said, taken.notes):
        os.close(descriptor)
    taken.control.close()
    assert answer == b"none"


@pytest.mark.skipif(NOTHING is None, reason="there is no `true` here")
def test_the_line_ends_in_a_forked_child() -> None:
    started = launch.launch({"launcher_python": NOTHING, "launcher": "launcher.py"})
    number = started.control.fileno()
    child = os.fork()
    if child == 0:
        try:
            os.fstat(number)
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    started.process.wait()
    started.control.close()
    os.close(started.notes)
