"""Starts the launcher of a station, perhaps ahead of whoever will talk to it.

Standard library only and nothing of an event loop: a command that starts cold launches its station
first and imports everything else while the station is being built.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_enclave.spawner import keeping

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ms_enclave.spawner.keeping import Survivor

__all__ = ["Launched", "launch", "launch_ahead", "take", "take_over"]

_SPARE_SLOTS = 1


@dataclass(frozen=True)
class Launched:
    """A launcher that was started; whoever has this ends it, by closing the socket."""

    control: socket.socket
    process: subprocess.Popen[bytes] | Survivor
    notes: int
    """A file in memory with what it says on its standard error."""
    instance: str
    """The name that its station has among all stations."""


_ahead: dict[str, Launched] = {}
_open_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_in_child() -> None:
    """A forked child must not keep its parent's stations alive by holding their sockets."""
    _ahead.clear()
    for opened in list(_open_sockets):
        opened.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)


def launch(plan: Mapping[str, Any]) -> Launched:
    """Start a launcher with a plan. Blocks for as long as starting a process takes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    package = Path(__file__).resolve().parent.parent
    whole: dict[str, Any] = {
        **plan,
        "instance": secrets.token_hex(8),
        "package": str(package),
        "spare_slots": _SPARE_SLOTS,
    }
    document = os.memfd_create("plan")
    notes = os.memfd_create("notes")
    try:
        os.write(document, json.dumps(whole).encode())
        os.lseek(document, 0, os.SEEK_SET)
        program = str(package / "spawner" / whole["launcher"])
        words = [whole["launcher_python"], "-I", "-S", program]
        process = subprocess.Popen(
            [*words, str(theirs.fileno()), str(document), *_for_others(whole)],
            pass_fds=[theirs.fileno(), document],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=notes,
            env={},
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        os.close(notes)
        raise
    finally:
        theirs.close()
        os.close(document)
    ours.setblocking(False)
    _open_sockets.add(ours)
    return Launched(ours, process, notes, whole["instance"])


def _for_others(plan: Mapping[str, Any]) -> list[str]:
    """What a launcher's command line says to whoever looks for stations, and nobody else reads: who
    has started it, and where its next owner finds it."""
    owner = keeping.identity(os.getpid())
    return [f"{owner['pid']}:{owner['start']}", *filter(None, [plan.get("keep")])]


def take_over(connection: socket.socket, process: Survivor) -> Launched:
    """A launcher that somebody else has started, as if it were ours."""
    _open_sockets.add(connection)
    return Launched(connection, process, os.memfd_create("notes"), process.instance)


def launch_ahead(key: str, plan: Mapping[str, Any]) -> None:
    """Start a launcher for whoever takes it by its key; it ends with this process otherwise."""
    _ahead[key] = launch({**plan, "key": key})


def take(key: str) -> Launched | None:
    """The launcher that was started ahead for that key, if one was. It is the caller's now."""
    return _ahead.pop(key, None)
