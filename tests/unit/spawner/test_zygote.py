"""What a preparation that failed is said to have failed for."""

from __future__ import annotations

import socket
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("stations exist on Linux only", allow_module_level=True)

from types import SimpleNamespace
from typing import Any

from ms_enclave.spawner import zygote


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"Ewhy it failed", "why it failed"),
        (b"", "it ended"),
        (b"E", "it ended"),
        (b"R", "it ended"),
    ],
)
def test_one_that_is_reaped_before_anybody_listened_is_still_heard(
    said: bytes, reason: str
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        zygotes: Any = zygote.Zygotes.__new__(zygote.Zygotes)
        zygotes.bare, zygotes.ready, zygotes.failed = None, {}, {}
        shadow = SimpleNamespace(pid=1)
        zygotes.preparing = {"key": SimpleNamespace(shadow=shadow, kernel=2, channel=ours)}
        zygotes._finish = lambda key, _pid: zygotes.preparing.pop(key)
        zygotes.ended(2)
        assert zygotes.failed == {"key": reason}
