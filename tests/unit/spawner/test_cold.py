from __future__ import annotations

import errno
import socket

import pytest

from ms_enclave.spawner import cold


@pytest.mark.parametrize("before", [[], [b"123"]])
def test_the_last_words_of_a_process_say_why_it_ended(before: list[bytes]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            for message in (*before, f"!read|{errno.EIO}".encode()):
                theirs.send(message)
        with pytest.raises(cold.ToldError, match="read") as told:
            cold.hear_last_words(ours)
        assert told.value.errno == errno.EIO


@pytest.mark.parametrize("closed", [True, False])
def test_one_that_was_killed_has_none(closed: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        if closed:  # else somebody else still holds it
            theirs.close()
        cold.hear_last_words(ours)
