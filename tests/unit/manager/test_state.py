"""The folder that one manager at a time has."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from ms_enclave.errors import ConfigError, SandboxStateError
from ms_enclave.manager._state import State

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_made_closed_to_others(tmp_path: Path) -> None:
    state = State(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    state.close()
    state.close()


def test_one_at_a_time_has_it_and_the_other_hears_who(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    first = State(path)
    with pytest.raises(SandboxStateError, match=f"process {os.getpid()}$"):
        State(path)
    first.close()
    State(path).close()


def test_a_forked_child_does_not_go_on_having_it(tmp_path: Path) -> None:
    state = State(str(tmp_path / "state"))
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        theirs.send(b"here")
        theirs.recv(1)
        os._exit(0)
    with ours, theirs:
        theirs.close()
        assert ours.recv(4) == b"here"
        state.close()
        State(str(tmp_path / "state")).close()
    os.waitpid(child, 0)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o777])
def test_one_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 0700"):
        State(str(tmp_path / "state"))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        State(str(tmp_path / "state"))


def test_it_knows_the_types_that_something_is_left_of(tmp_path: Path) -> None:
    state = State(str(tmp_path / "state"))
    for name in ("process", "some/thing"):
        os.mkdir(state.folder_of(name))
    assert state.types() == ["process", "some/thing"]
    state.close()
